"""Is the word after a number its unit, or does it make another number of it (``5 million``, ``5 tenths``, ``5 pi``)?

Units are an open class (apples, dollars, km) and what changes a number is a closed one, so a word is taken for a unit
unless it is a number, a fraction, a multiple, a constant, a function, an operator or a connective of English, or could
be a product of variables (``xy``): words without a vowel or of two letters must be known abbreviations.
"""

import re

_CARDINAL = (
    "(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|"
    "(?:twen|thir|four|for|fif|six|seven|eigh|nine)(?:ty|tie)|hundred|thousand)"
)
_FACTORS = re.compile(
    rf"{_CARDINAL}+(?:s|es|th|ths|fold|folds)?|[a-z]*illi(?:on|ard)(?:s|en|th|ths)?|"
    rf"{_CARDINAL}*(?:firsts?|thirds?|fifths?|eighths?|ninths?|twelfths?)|"
    "half|halfs|halves|quarters?|percentiles?|deciles?|"
    "dozens?|doz|scores?|gross|grand|myriads?|googol|lakhs?|lacs?|crores?|arabs?|kharabs?|wan|"
    "mil|mill|mille|mln|mlrd|mio|bln|trn|tsd|millones|mila|tausend|hundert|dutzend|"
    "double|triple|treble|quadruple|quintuple|twice|thrice|doubled|tripled|quadrupled|halved|squared|cubed|fold|folds|"
    "pi|tau|phi|euler|alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|omicron|rho|sigma|upsilon|chi|psi|"
    "omega|infinity|infinite|inf|nan"
)
_NO_UNITS = """
sin cos tan cot csc sinh cosh tanh arcsin arccos arctan log exp sqrt cbrt root abs mod modulo modulus max gcd lcm
floor ceil det dim arg plus minus over under by per divided multiplied added subtracted square cube
power raised factorial choose exponent base point dot decimal recurring repeating repeated remainder rem residue
negative positive prime

to of and or nor but not is are was were be equal equals than versus approximately approx about around roughly
nearly almost ish something odd maybe perhaps probably possibly wrong incorrect false true none null nil naught
nought unless if else then so because since where when which that with without for from into out off up down on
as the this these those it its
"""
"""Functions and operators that want another operand or change the one before; then connectives and hedges."""
_ABBREVIATIONS = """
am pm ad bc bce ce ms ns us sec secs min mins hr hrs dy wk wks mo mos mth mths yr yrs
mm mms cm cms dm km kms nm um in ins ft fts yd yds mi sq ha sqft sqm sqkm
ml mls cl dl hl lt ltr ltrs gal oz qt qts pt pts tbsp tbs tsp cc lb lbs kg kgs mg ng gm gms cg dg st ct nt
kgf kn pa kpa mpa psi cp hp kw mw gw kwh mwh kj mj ev kev mev cal kcal kcals va kv mv ma ah mah mol db
hz khz mhz ghz kb mb gb tb kbps mbps gbps bps px ppm ppb fps mph kph kmh kmph mps rpm mpg deg rad pct
rs cts dh dhs gbp chf hkd sgd czk pln nzd rmb pcs pkt pkts pkg pkgs btl ctn bx ppl
"""


_REFUSED, _KNOWN = frozenset(_NO_UNITS.split()), frozenset(_ABBREVIATIONS.split())
_LONGEST_WORD = 20


def changes_number(word: str) -> bool:
    """Whether ``word`` after a number names another one: ``million``, ``tenths``, ``dozen``, ``squared``, ``pi``."""
    return _FACTORS.fullmatch(word.lower()) is not None


def is_unit(word: str) -> bool:
    """Whether ``word`` after a number leaves it as it is."""
    word = word.lower()
    if word in _KNOWN:
        return True
    if not word.isascii() or changes_number(word) or word in _REFUSED:
        return False
    return 2 < len(word) <= _LONGEST_WORD and any(letter in word for letter in "aeiouy")
