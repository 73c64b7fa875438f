"""Models of any provider behind one contract.

Owns: budgets, and what calls used; the calls are not stored here.
Serves: `weft.models.v1.ModelService` (ListModels, Generate, StreamGenerate, BatchGenerate,
Embed) and `weft.models.v1.BudgetService`.
Emits: BudgetSet, BudgetDeleted, BudgetLeased, UsageRecorded; `agents` records what a model said.
Consumes: its own events, for what is left of budgets and for usage.

Providers: `builtin/extractive` and `builtin/hashing`, offline and always there, and
`<provider>/<model>` of each endpoint that is configured; `route/<route>` is several of them.
"""
