"""Writes the three shipped guard suites into config/suites/: `python -m scripts.make_suites`.

Everything here is our own text or drawn by a seeded generator, so the same code gives the same bytes. The wording of
the questions is used nowhere else: no curriculum generator can produce one of them, and the contamination gate refuses
a file that copies one.
"""

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from core.atomic import write_bytes
from core.paths import builtin_config

ITEMS = 100
Item = dict[str, object]

OPPOSITES = {
    "hot": ["cold"], "up": ["down"], "day": ["night"], "open": ["closed", "shut", "close"], "wet": ["dry"],
    "early": ["late"], "full": ["empty"], "fast": ["slow"], "left": ["right"], "old": ["new", "young"],
    "hard": ["soft", "easy"], "light": ["dark", "heavy"], "true": ["false"], "near": ["far"], "win": ["lose"],
    "push": ["pull"], "begin": ["end", "finish"], "loud": ["quiet", "soft"], "thick": ["thin"], "north": ["south"],
}  # fmt: skip
KINDS = {
    "an animal": ["otter", "falcon", "salmon", "beetle", "camel", "lizard"],
    "a colour": ["violet", "scarlet", "turquoise", "beige", "crimson", "indigo"],
    "a tool": ["hammer", "chisel", "wrench", "pliers", "shovel", "ladle"],
    "a fruit": ["apricot", "mango", "raspberry", "papaya", "quince", "lychee"],
    "a musical instrument": ["oboe", "cello", "trumpet", "banjo", "harpsichord", "tuba"],
    "a piece of clothing": ["scarf", "mitten", "trousers", "cardigan", "sock", "waistcoat"],
}
WORDS = (
    "anchor basket candle dolphin engine forest garden helmet island jacket kettle ladder magnet needle orchard "
    "pencil quarry ribbon saddle tunnel umbrella velvet window yellow zipper bridge copper donkey meadow pepper"
).split()
FACTS = [
    ("At sea level, water boils at how many degrees Celsius?", "100", ["0", "50", "212"]),
    ("Which planet is closest to the Sun?", "Mercury", ["Venus", "Mars", "Neptune"]),
    ("How many legs does a spider have?", "eight", ["six", "ten", "four"]),
    ("Which gas do plants take in to make sugar?", "carbon dioxide", ["oxygen", "helium", "nitrogen"]),
    ("What is frozen water called?", "ice", ["steam", "sand", "salt"]),
    ("How many sides does a hexagon have?", "six", ["five", "seven", "eight"]),
    ("Which organ pumps blood through the body?", "the heart", ["the liver", "the lungs", "the stomach"]),
    ("Which metal is liquid at room temperature?", "mercury", ["iron", "copper", "silver"]),
    ("How many minutes are in two hours?", "120", ["60", "90", "200"]),
    ("What do bees make?", "honey", ["milk", "silk", "wool"]),
    ("Which is the largest ocean?", "the Pacific", ["the Atlantic", "the Arctic", "the Indian"]),
    ("What force pulls a dropped stone to the ground?", "gravity", ["friction", "magnetism", "pressure"]),
    ("How many letters does the English alphabet have?", "26", ["24", "25", "28"]),
    ("Which season comes after winter?", "spring", ["autumn", "summer", "monsoon"]),
    ("What is the chemical formula of water?", "H2O", ["CO2", "NaCl", "O3"]),
    ("Which continent is Egypt in?", "Africa", ["Europe", "Asia", "Australia"]),
    ("What does a thermometer measure?", "temperature", ["weight", "time", "distance"]),
    ("How many days does a leap year have?", "366", ["365", "364", "360"]),
    ("Which animal is a mammal?", "the whale", ["the shark", "the trout", "the eagle"]),
    ("What is the square root of 81?", "9", ["8", "7", "18"]),
    ("Which of these is a prime number?", "13", ["12", "15", "21"]),
    ("What is a baby frog called?", "a tadpole", ["a cub", "a calf", "a chick"]),
    ("In which direction does the Sun rise?", "in the east", ["in the west", "in the north", "in the south"]),
    ("What do we call a shape with three sides?", "a triangle", ["a square", "a circle", "a pentagon"]),
    ("Which sense uses the tongue?", "taste", ["sight", "hearing", "touch"]),
]
NAMES = ["Asha", "Bruno", "Chidi", "Dana", "Elif", "Farid", "Greta", "Hugo", "Imani", "Jonas"]
THINGS = ["marbles", "stamps", "shells", "buttons", "postcards", "coins", "beads", "feathers"]
NONSENSE = ["blick", "dax", "wug", "fep", "zorp", "tove", "mim", "glip", "narn", "quell", "sark", "yomp"]


def _ask(prompt: str, expected: object, grader: str, tag: str, **more: object) -> Item:
    return {"prompt": prompt, "expected": expected, "grader": grader, **more, "tags": [tag]}


def easy(random_: random.Random) -> Iterator[Item]:
    """Small sums, opposites, kinds of things, copying, comparing."""
    for a, b in random_.sample([(a, b) for a in range(2, 10) for b in range(2, 10)], 20):
        yield _ask(f"Add {a} and {b}. Reply with the number and nothing else.", str(a + b), "numeric", "sum")
    for word, opposites in OPPOSITES.items():
        expected = [form for word_ in opposites for form in (word_, word_.capitalize(), f"{word_}.")]
        yield _ask(f'Reply with one word that means the opposite of "{word}".', expected, "exact_match", "opposite")
    for kind, member in [(kind, member) for kind, members in KINDS.items() for member in members[:3]]:
        others = random_.sample([word for other in KINDS if other != kind for word in KINDS[other]], 3)
        choices = random_.sample([member, *others], 4)
        question = f"Pick the word that names {kind}: {', '.join(choices)}."
        yield _ask(question, member, "multiple_choice", "kind", choices=choices)
    for word in random_.sample(WORDS, 22):
        yield _ask(f"Copy this word exactly and write nothing else: {word}", word, "exact_match", "copy")
    for a, b in random_.sample([(a, b) for a in range(10, 99) for b in range(10, 99) if a != b], 20):
        pattern = "(?i)yes[.!]?" if a > b else "(?i)no[.!]?"
        yield _ask(f"Answer yes or no: is {a} greater than {b}?", pattern, "regex", "compare")


def medium(random_: random.Random) -> Iterator[Item]:
    """Facts, two-digit arithmetic, one-step problems, alphabetical order, small JSON objects."""
    for question, right, wrong in FACTS:
        choices = random_.sample([right, *wrong], 4)
        yield _ask(f"{question} Choose one: {'; '.join(choices)}.", right, "multiple_choice", "fact", choices=choices)
    for _ in range(20):
        a, b = random_.randint(31, 99), random_.randint(11, 30)
        yield _ask(
            f"Take {b} away from {a}. Reply with the number and nothing else.", str(a - b), "numeric", "subtract"
        )
    for _ in range(20):
        name, thing = random_.choice(NAMES), random_.choice(THINGS)
        boxes, each = random_.randint(3, 12), random_.randint(3, 12)
        question = f"{name} has {boxes} boxes with {each} {thing} in each. How many {thing} is that in all?"
        yield _ask(f"{question} Reply with the number and nothing else.", str(boxes * each), "numeric", "problem")
    for _ in range(20):
        words = random_.sample(WORDS, 4)
        question = f"Which of these words comes first in the alphabet: {', '.join(words)}? Reply with that word alone."
        yield _ask(question, min(words), "exact_match", "order")
    for n in range(15):
        name, age = NAMES[n % len(NAMES)], 20 + 3 * n
        schema = {
            "type": "object",
            "properties": {"name": {"const": name}, "age": {"const": age}},
            "required": ["name", "age"],
            "additionalProperties": False,
        }
        question = f'Reply with nothing but a JSON object whose "name" is "{name}" and whose "age" is the number {age}.'
        yield _ask(question, schema, "json_schema", "json")


def hard(random_: random.Random) -> Iterator[Item]:
    """Long products, two-step problems, sorting, inference with made-up words, counting on in the calendar."""
    for _ in range(20):
        a, b = random_.randint(112, 989), random_.randint(3, 9)
        yield _ask(f"Multiply {a} by {b}. Reply with the number and nothing else.", str(a * b), "numeric", "product")
    for _ in range(20):
        name, thing = random_.choice(NAMES), random_.choice(THINGS)
        packs, each, given = random_.randint(4, 9), random_.randint(6, 12), random_.randint(5, 20)
        question = f"{name} buys {packs} packs of {each} {thing} and gives {given} of them away. How many are left?"
        yield _ask(
            f"{question} Reply with the number and nothing else.", str(packs * each - given), "numeric", "two steps"
        )
    for _ in range(20):
        numbers = random_.sample(range(10, 100), 6)
        question = f"Sort these numbers from small to large, separated by single spaces: {', '.join(map(str, numbers))}"
        yield _ask(question, " ".join(map(str, sorted(numbers))), "exact_match", "sort")
    for n in range(20):
        a, b, c = random_.sample(NONSENSE, 3)
        follows = n % 2 == 0
        first, second = (f"every {a} is a {b}", f"every {b} is a {c}")
        asked = f"is every {a} a {c}" if follows else f"is every {c} a {a}"
        right = "yes" if follows else "not necessarily"
        question = f"Suppose {first} and {second}. From this alone, {asked}? Choose one: yes; not necessarily."
        yield _ask(question, right, "multiple_choice", "inference", choices=["yes", "not necessarily"])
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    for today, later in random_.sample([(today, later) for today in range(7) for later in range(9, 61)], 20):
        question = (
            f"Today is {days[today]}. Which day of the week will it be in {later} days? Reply with the day alone."
        )
        yield _ask(question, days[(today + later) % 7], "exact_match", "calendar")


TIERS: dict[str, tuple[int, int, Callable[[random.Random], Iterator[Item]]]] = {
    "easy": (101, 8, easy),
    "medium": (102, 32, medium),
    "hard": (103, 24, hard),
}


def write_tier(name: str, folder: Path) -> None:
    """Write one suite folder. Raises StorageError; AssertionError when the tier has not exactly ITEMS questions."""
    seed, longest, make = TIERS[name]
    items = list({str(item["prompt"]): item for item in make(random.Random(seed))}.values())  # noqa: S311  (no secret)
    assert len(items) == ITEMS, f"{name} has {len(items)} items"  # noqa: S101  (our own table)
    suite = {
        "name": name,
        "version": 1,
        "metric": "accuracy",
        "role": "guard",
        "tolerance": 0.05,
        "max_new_tokens": longest,
        "seed": seed,
        "description": str(make.__doc__),
    }
    lines = [json.dumps({"id": f"{name}-{n:03}", **item}, ensure_ascii=False) for n, item in enumerate(items, 1)]
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "suite.json", (json.dumps(suite, indent=1) + "\n").encode())
    write_bytes(folder / "items.jsonl", ("\n".join(lines) + "\n").encode())


def main() -> int:
    """Write all three."""
    for name in TIERS:
        write_tier(name, builtin_config() / "suites" / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
