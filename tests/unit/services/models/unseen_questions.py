"""Questions about the folder `unseen`: what the answer holds and which file it names.

They were written before the model answered any of them, in words that people use, which
often aren't the document's.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions of one session; the last one's answer holds `fact`, from the file `source`."""

    questions: tuple[str, ...]
    fact: str
    source: str


def _one(question: str, fact: str, source: str) -> Asked:
    return Asked((question,), fact, source)


_LEDGER, _MUSEUM, _MARLIN = "ledger-notes.md", "tidewater-museum.md", "marlin-release-notes.md"
_BEES, _POLICY = "beekeeping-course.txt", "home-office-policy.md"

ANSWERABLE: tuple[Asked, ...] = (
    _one("How long until a lease expires?", "expiry 9 s", _LEDGER),
    _one("How often is a lease renewed?", "renewal 2 s", _LEDGER),
    _one("What is the largest batch?", "512 entries", _LEDGER),
    _one("What happens to a batch with a wrong checksum?", "quarantine", _LEDGER),
    _one("How many entries does the queue hold?", "10,000", _LEDGER),
    _one("When do producers get BUSY?", "80 %", _LEDGER),
    _one("What is the throughput of the local disk path?", "9,300/s", _LEDGER),
    _one("What is the p99 of remote, compressed?", "38 ms", _LEDGER),
    _one("How much traffic does compression save?", "71 %", _LEDGER),
    _one("How long does a cold start take?", "14 s", _LEDGER),
    _one("How many snapshots are kept?", "three are kept", _LEDGER),
    _one("How far may clocks differ?", "250 ms", _LEDGER),
    _one("When should vacuum be run?", "03:30", _LEDGER),
    _one("Where is the museum?", "Quay Street 17", _MUSEUM),
    _one("On which day of the week is the museum closed?", "except Mondays", _MUSEUM),
    _one("How late is it open on Thursdays?", "21:00", _MUSEUM),
    _one("How much is a family ticket?", "32 €", _MUSEUM),
    _one("What does the annual pass include?", "lectures", _MUSEUM),
    _one("How long does a guided tour last?", "70 minutes", _MUSEUM),
    _one("How far ahead must groups book?", "two weeks", _MUSEUM),
    _one("Can I take pictures?", "without flash", _MUSEUM),
    _one("Are dogs allowed?", "guide dogs", _MUSEUM),
    _one("Who runs the café?", "Marisol Vega", _MUSEUM),
    _one("How old is the oldest object?", "1583", _MUSEUM),
    _one("Which tram goes to the museum?", "Tram 4", _MUSEUM),
    _one("What does marlin diff do?", "compares two snapshots", _MARLIN),
    _one("How long is the session cookie valid now?", "12 hours", _MARLIN),
    _one("Who found the security hole?", "Hanna Lindqvist", _MARLIN),
    _one("Which database is no longer supported?", "MySQL 5.7", _MARLIN),
    _one("When was version 5.1.3 released?", "2 September 2024", _MARLIN),
    _one("In which version will the XML interface be removed?", "6.0", _MARLIN),
    _one("How do I upgrade to 5.1.0?", "marlin migrate", _MARLIN),
    _one("How long does the migration take?", "one minute per million rows", _MARLIN),
    _one("Who teaches the course?", "Gwen Parry", _BEES),
    _one("When does the course begin?", "12 April", _BEES),
    _one("What does the course cost?", "180 pounds", _BEES),
    _one("How many people can take part?", "14 people", _BEES),
    _one("How old must participants be?", "16", _BEES),
    _one("What do I have to bring?", "rubber boots", _BEES),
    _one("What should I do when a bee stings me?", "sideways", _BEES),
    _one("Why must I not stand in front of a hive?", "threat", _BEES),
    _one("How often is a colony inspected?", "every nine days", _BEES),
    _one("What does a blue dot mean?", "end in 0 or 5", _BEES),
    _one("How much honey does a colony give?", "22 kg", _BEES),
    _one("How many days a week can I work from home?", "three days", _POLICY),
    _one("How much money do I get for electricity?", "28 euros", _POLICY),
    _one("How long may I work from another country?", "20 working days", _POLICY),
    _one("Which form is needed for social insurance?", "A1", _POLICY),
    _one("How soon must equipment be returned?", "ten days", _POLICY),
    _one("How quickly must a lost device be reported?", "two hours", _POLICY),
    _one("Who grants exceptions?", "head of department", _POLICY),
    _one("Can interns work from home?", "in the office", _POLICY),
    _one("Who owns the policy?", "Ruth Okafor", _POLICY),
)

WITH_FIGURES: tuple[Asked, ...] = (
    _one("How much do 3 family tickets cost?", "= 96", _MUSEUM),
    _one("What would 4 adult tickets cost?", "= 58", _MUSEUM),
    _one("What is the deposit of the course times 2?", "= 80", _BEES),
    _one("How much is the internet allowance for 12 months?", "= 336", _POLICY),
    _one("How much disk does a pinned log fill in 6 hours?", "= 12", _LEDGER),
    _one("What is the reader's port plus 10?", "= 7081", _LEDGER),
    _one(
        "What is the price difference between the Family and the Adult ticket?", "= 17.5", _MUSEUM
    ),
    _one("What is half of the equipment limit?", "= 325", _POLICY),
)

FOLLOW_UPS: tuple[Asked, ...] = (
    Asked(("How much is an adult ticket?", "And a reduced one?"), "9 €", _MUSEUM),
    Asked(("When do guided tours start?", "How long do they last?"), "70 minutes", _MUSEUM),
    Asked(("What does the course cost?", "And how high is the deposit?"), "40 pounds", _BEES),
    Asked(("What is the p50 of the local memory path?", "And the p99?"), "1.1 ms", _LEDGER),
    Asked(("What does the course cost?", "Divide that by 8."), "= 22.5", _BEES),
    Asked(
        ("How much honey does a colony give?", "And how much syrup does it need?"), "15 kg", _BEES
    ),
    Asked(("When was 5.1.0 released?", "What was deprecated in it?"), "XML interface", _MARLIN),
)

UNANSWERABLE: tuple[str, ...] = (
    "What is the wifi password of the museum?",
    "Who painted the portrait in the entrance hall?",
    "How many visitors does the museum have per year?",
    "How much does Marlin's Team plan cost?",
    "Does Marlin run on Windows?",
    "Who is the chief executive?",
    "How many bees live in a hive?",
    "Which hotel is near the schoolhouse?",
    "What is the salary of an apprentice?",
    "How many parental leave days are there?",
    "Which cloud provider hosts the ledger?",
    "What is the capital of Portugal?",
    "How do I bake sourdough bread?",
    "What is Gwen Parry's telephone number?",
)
