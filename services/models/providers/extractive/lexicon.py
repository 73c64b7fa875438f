"""Words of English that the offline model knows: plain data, the same for every subject."""


def word_list(text: str) -> tuple[str, ...]:
    """The words of `text` between white space, in order."""
    return tuple(text.split())


def word_set(text: str) -> frozenset[str]:
    """The words of `text` between white space."""
    return frozenset(text.split())


STOP_WORDS = word_set(
    """
    a about according after again all also am an and answer any anybody anyone anything are
    aren as ask at be because been before being both but by bye can cheers could couldn d
    describe did didn do doc docs document documentation documents does doesn doing don done
    down during each either else etc ever every explain few find for from further get gets
    getting give given gives go goes going good got had happen happened happens has hasn have
    haven having he hello her here hers hey hi him his how however i if in into is isn it its
    itself just know let lets like ll longer look lot m made make makes manual many may maybe me
    mean
    means might more morning most much must my need needs no nor not now of off ok okay on
    once one only or other our ours out own per please question quite rather re really s same
    say says shall she should shouldn show so some somebody someone something such sure t tell
    than thank thanks that the their theirs them then there these they thing things this those
    through to too under until up upon us use used using ve very via want was wasn way we
    welcome well were weren what whatever when where whether which while who whom whose why
    will with within without won word words would wouldn yes yet you your yours
    """
)
"""Words that say nothing of a question's subject, asking words and requests among them."""

UNITS = word_set(
    """
    amount byte bytes day days degrees dollar dollars euro euros gram grams hour hours kg
    kilometer kilometers kilometre kilometres litre litres meter meters metre metres
    millisecond milliseconds minute minutes month months ms number people percent pound pounds
    second seconds time times week weeks year years
    """
)
"""Words that a question of quantity asks in; they tell little of its subject."""

LIGHT_WORDS = word_set(
    """
    able allowed available back become big bring call called case cause come contain current
    currently data do exist exactly find first following force full general have help high hold
    important information include keep kind known last latest list long low main mean name
    necessary need new next number offer old order part place possible provide put receive
    require rule see set small sort special stand start take thing total try type value way
    whole work
    """
)
"""Words of everyday use that tell less of a subject than others do."""

PRONOUNS = word_set(
    """
    he her his it its she that their theirs them these they this those
    """
)
"""Words that point back at something said before."""

INTERROGATIVES = word_set(
    """
    am are can could did do does had has have how how's is may should was were what what's
    whats when when's where where's which who who's whom whose why will would
    """
)
"""Words that begin a question."""

IMPERATIVES = word_set(
    """
    add calculate compute convert count create delete describe divide evaluate explain fetch
    find get give list look multiply name quote read remove say search send set show solve
    subtract summarise summarize tell update work
    """
)
"""Verbs that begin a request."""

IRREGULAR = {
    form: base
    for base, forms in {
        "be": "was were been",
        "begin": "began begun",
        "break": "broke broken",
        "bring": "brought",
        "build": "built",
        "buy": "bought",
        "catch": "caught",
        "child": "children",
        "choose": "chose chosen choice choices",
        "come": "came",
        "draw": "drew drawn",
        "drink": "drank drunk",
        "drive": "drove driven",
        "eat": "ate eaten",
        "fall": "fell fallen",
        "feed": "fed",
        "find": "found",
        "foot": "feet",
        "forget": "forgot forgotten",
        "freeze": "froze frozen",
        "give": "gave given",
        "go": "went gone",
        "grow": "grew grown growth",
        "hide": "hid hidden",
        "hold": "held",
        "keep": "kept",
        "know": "knew known",
        "lead": "led",
        "leave": "left",
        "lose": "lost loss losses",
        "man": "men",
        "meet": "met",
        "pay": "paid",
        "person": "people persons",
        "rise": "rose risen",
        "run": "ran running",
        "sell": "sold",
        "send": "sent",
        "shut": "shuts shutting",
        "speak": "spoke spoken",
        "spend": "spent",
        "stand": "stood",
        "steal": "stole stolen",
        "swim": "swam swum",
        "take": "took taken",
        "teach": "taught",
        "tell": "told",
        "think": "thought",
        "wear": "wore worn",
        "win": "won",
        "woman": "women",
        "write": "wrote written",
    }.items()
    for form in word_list(forms)
}
"""Irregular forms and the word that they are forms of."""

PHRASAL_VERBS = {
    "get rid of": "remove",
    "go down": "fall",
    "go up": "rise",
    "set up": "install",
    "switch off": "disable",
    "switch on": "enable",
    "take part": "participate",
    "throw away": "discard",
    "turn off": "disable",
    "turn on": "enable",
}
"""Verbs of several words, and the one that says the same."""

NOT_SUPERLATIVES = word_set(
    "arrest contest digest forest guest harvest honest interest invest manifest modest protest"
    " request suggest"
)
"""Words that end in `est` and aren't the highest degree of another."""

SYNONYMS: tuple[str, ...] = (
    "allow permit let authorise authorize",
    "answer reply respond response",
    "arrive come",
    "ask request apply",
    "begin start commence launch open",
    "big large huge size",
    "breach incident violation leak",
    "boss manager supervisor head lead",
    "bug defect fault issue problem error failure",
    "buy purchase order acquire",
    "cancel terminate termination notice revoke",
    "car vehicle automobile",
    "change modify edit alter update adjust",
    "choose select pick",
    "company firm employer organisation organization business",
    "contract agreement",
    "cook bake boil simmer roast fry",
    "cost price fee charge expense pay expensive",
    "country nation state",
    "create make build produce add generate",
    "customer client buyer user",
    "danger risk hazard dangerous",
    "deep depth",
    "default standard normal usual",
    "delete remove erase drop discard destroy uninstall",
    "doctor physician medical",
    "duration long time length period",
    "employee staff worker colleague personnel",
    "encrypt cipher seal encode",
    "end finish stop close terminate complete expire cancel",
    "entitled eligible entitlement allowance get receive",
    "fast quick rapid speed quickly",
    "fix repair correct resolve",
    "far distance",
    "forbid prohibit ban disallow deny",
    "frequency often every daily weekly monthly yearly",
    "get obtain fetch receive retrieve read",
    "help support assist assistance aid",
    "high height tall",
    "home remote house",
    "ill sick sickness illness disease",
    "include contain hold comprise",
    "inform notify tell report announce notice",
    "invoke call",
    "job position role post",
    "absent excused missing away",
    "attend present participate participant attendee",
    "fridge refrigerator freezer",
    "keep store retain save hold preserve retention storage last",
    "lawyer attorney counsel",
    "licence license",
    "lifetime ttl retention",
    "log journal logfile",
    "kid child",
    "limit maximum max most cap bound ceiling quota",
    "live reside inhabit inhabitant resident population people",
    "location place site where situated located",
    "loud noise volume",
    "method function procedure operation endpoint",
    "minimum min least",
    "money cash",
    "parental maternity paternity",
    "password passphrase secret credential",
    "path file folder directory",
    "phone telephone call mobile",
    "own owner belong",
    "photo photography photograph picture image",
    "reimburse refund repay reimbursement claim",
    "repeat retry again",
    "rise raise increase grow growth climb",
    "replace substitute swap alternative instead",
    "resign quit resignation",
    "return back",
    "run execute start",
    "salary wage pay compensation income earning",
    "send submit deliver transmit",
    "show display list",
    "sign signature signed",
    "single individual separate sole",
    "small little tiny",
    "stage phase step",
    "start found establish",
    "stir mix combine whisk blend",
    "suggest recommend advise propose",
    "teach train instruct training course",
    "temperature hot heat degree warm",
    "throughput rate",
    "timeout expire deadline",
    "trash bin waste garbage",
    "travel trip journey",
    "type kind sort category",
    "vacation holiday leave",
    "valid validity lifetime lifespan expire expiry expiration last",
    "verify check confirm",
    "version release",
    "weigh weight heavy kg gram",
    "wide width broad",
    "yearly annual year annually",
    "old age aged",
)
"""Groups of words that may stand for each other; matched after stemming."""

SMALL_NUMBERS = {
    word: number
    for number, word in enumerate(
        word_list("one two three four five six seven eight nine ten eleven twelve"), start=1
    )
}
"""Numbers that prose spells out."""
