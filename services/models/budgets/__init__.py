"""What calls of models may cost, and what they did: budgets enforced, and usage recorded."""
