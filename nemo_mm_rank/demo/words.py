"""Texts and code of the demo pool: short passages with a question and its answer, Python with what it is for."""

from __future__ import annotations

from random import Random

SLOTS: dict[str, list[str]] = {
    "island": ["Marrow", "Tolsay", "Skerra", "Hallin", "Odrey", "Venn"],
    "town": ["Brackford", "Elmstead", "Norwick", "Tarrow", "Luneby", "Castor"],
    "person": ["Ada", "Bruno", "Chen", "Dalia", "Emeka", "Freya", "Goran", "Hana"],
    "month": ["March", "April", "May", "June", "September", "October"],
    "number": ["three", "four", "seven", "twelve", "twenty", "forty"],
    "bird": ["gulls", "terns", "larks", "swallows", "geese"],
    "animal": ["sheep", "wild horses", "deer", "goats", "hares"],
    "dish": ["onion soup", "plum cake", "flat bread", "pea stew"],
    "items": ["orders", "users", "prices", "scores", "records", "names", "rows"],
    "key": ["age", "total", "size", "rank", "price", "weight"],
    "file": ["config", "report", "input", "log", "data"],
    "count": ["2", "3", "5", "10", "100"],
}

Passage = tuple[str, str, str]

OUTDOORS: list[Passage] = [
    (
        "The island of {island} lies low in the sea. In {month} its slopes are covered with green grass, and "
        "{bird} nest on the cliffs above the water. The ferry comes once a week.",
        "What grows on the slopes of {island} in {month}?",
        "Green grass, above the sea.",
    ),
    (
        "Behind {town} the path climbs through meadows until the whole valley lies in the sun. {animal} graze under "
        "a wide blue sky, and in the evening the hills turn red.",
        "Where do {animal} graze near {town}?",
        "In the sunny meadows, under a wide blue sky.",
    ),
    (
        "At {town} the beach is {number} miles long. When the sun sets, the sky and the sea take the same orange "
        "colour. Fishermen pull their boats onto the sand before dark.",
        "What colour do sky and sea take at sunset in {town}?",
        "They both turn orange when the sun goes down.",
    ),
    (
        "A storm reached the coast of {island} in {month}. Dark clouds covered the sky, and waves {number} feet high "
        "broke over the rocks. By morning the sea was calm again.",
        "What did the storm bring to the coast of {island}?",
        "Dark clouds in the sky and high waves on the sea.",
    ),
    (
        "The forest near {town} is home to {animal} and {bird}. Sunlight falls through the leaves onto moss and "
        "grass, and a stream runs down to the lake.",
        "What lives in the forest near {town}?",
        "Natural woodland animals: {animal} and {bird}.",
    ),
    (
        "From {town} the road leads down to the shore with its dunes and pools. In {month} children look for shells "
        "at low tide, and {bird} walk along the edge of the water.",
        "Where do children look for shells near {town}?",
        "On the shore of the sea, with {bird} close by.",
    ),
    (
        "On the plain west of {town} nothing stops the wind. The grass bends like waves, {animal} stand with their "
        "backs to it, and clouds race across the sky.",
        "What bends like waves on the plain west of {town}?",
        "The grass, in the wind under a sky with clouds.",
    ),
    (
        "Before sunrise {person} walked up the hill above {town}. Fog filled the valley like a white sea, and then "
        "the sun came out and the whole scene glowed.",
        "What did {person} see from the hill above {town}?",
        "Fog like a sea, and the sun rising over the scene.",
    ),
    (
        "A lake lies between {town} and the mountains. In {month} its water is clear enough to count the stones, and "
        "{animal} come to drink while the sky turns pink.",
        "Who comes to drink from the lake near {town}?",
        "Animals of the outdoors: {animal}, when the sky turns pink.",
    ),
    (
        "The garden on {island} is open to the wind. {person} planted {number} apple trees with stones around them, "
        "and the grass below is cut by {animal}. From the gate one can see the sea.",
        "What can be seen from the gate of the garden on {island}?",
        "The sea, beyond grass and apple trees.",
    ),
]

INDOORS: list[Passage] = [
    (
        "The night train to {town} has {number} carriages. It leaves at ten, and the conductor checks every ticket "
        "before the first stop. Seats must be booked in {month}.",
        "How many carriages has the night train to {town}?",
        "It has {number} carriages.",
    ),
    (
        "{person} opened a bakery in {town}. For {dish} the oven is heated before dawn, and {number} trays are sold "
        "by noon. The recipe is kept in a locked drawer.",
        "What does {person} bake in {town}?",
        "{person} bakes {dish}.",
    ),
    (
        "The library of {town} lends out books for {number} weeks. {person}, who runs the desk, sends a letter when "
        "a loan is late, and the fine is paid in coins.",
        "For how long can a book be borrowed in {town}?",
        "For {number} weeks.",
    ),
    (
        "In the final {person} gave up a rook and won in {number} moves. The hall in {town} was silent until the "
        "clock stopped. The prize was a silver cup.",
        "How did {person} win the chess final in {town}?",
        "By giving up a rook, in {number} moves.",
    ),
    (
        "The council of {town} raised the water tax in {month}. {person} voted against it, but {number} members were "
        "in favour. The new rate is printed on every bill.",
        "Who voted against the water tax in {town}?",
        "{person} did.",
    ),
    (
        "{person} repairs old radios. A set from {town} needed {number} new valves and a day at the bench before the "
        "speaker hummed. The bill was sent in {month}.",
        "How many valves did the radio from {town} need?",
        "It needed {number} new valves.",
    ),
    (
        "The lift in the town hall of {town} holds {number} people. Every {month} {person} checks the cable and the "
        "brakes, and signs a form with the date.",
        "Who checks the lift of {town} every {month}?",
        "{person} does, and signs a form.",
    ),
    (
        "In the kitchen of the school {person} cooks {dish} for {number} tables. The plates are stacked with a cloth "
        "between them, and the dishwasher runs until four.",
        "What does {person} cook at the school?",
        "{person} cooks {dish} for {number} tables.",
    ),
    (
        "The printer of the office in {town} has {number} trays. When paper is stuck, {person} opens the back with a "
        "key and turns the roller by hand.",
        "What does {person} do when paper is stuck in {town}?",
        "Open the back with a key and turn the roller.",
    ),
]

SNIPPETS: list[tuple[str, str]] = [
    (
        "sorted_{items} = sorted({items}, key=lambda row: row['{key}'], reverse=True)\nprint(sorted_{items}[:{count}])",
        "Sort {items} by {key} in descending order and print the first {count}.",
    ),
    (
        "def count_{items}(path):\n    with open(path) as file:\n        return sum(bool(row.strip()) for row in file)",
        "A function that counts the {items} in a file, one on each line, skipping blank ones.",
    ),
    (
        "import json\n\nwith open('{file}.json') as file:\n    {items} = json.load(file)['{items}']",
        "Load the list of {items} from the JSON file {file}.json.",
    ),
    (
        "by_{key} = {{}}\nfor row in {items}:\n    by_{key}.setdefault(row.{key}, []).append(row)",
        "Group {items} in a dictionary by their {key}.",
    ),
    (
        "average = sum(row.{key} for row in {items}) / len({items})",
        "Compute the average {key} of all {items}.",
    ),
    (
        "import csv\n\nwith open('{file}.csv', newline='') as file:\n    {items} = list(csv.DictReader(file))",
        "Read {items} from the CSV file {file}.csv as dictionaries.",
    ),
    (
        "unique = list(dict.fromkeys(row['{key}'] for row in {items}))",
        "Get the distinct values of {key} in {items}, in the order they first appear.",
    ),
    (
        "def chunks({items}, size={count}):\n    for start in range(0, len({items}), size):\n"
        "        yield {items}[start : start + size]",
        "Split {items} into chunks of {count} elements.",
    ),
    (
        "import re\n\nfound = re.findall(r'\\d+', open('{file}.txt').read())\nprint(max(map(int, found)))",
        "Print the largest number found in the text file {file}.txt.",
    ),
    (
        "for attempt in range({count}):\n    try:\n        {items} = fetch('{key}')\n        break\n"
        "    except TimeoutError:\n        continue",
        "Try to fetch the {items} up to {count} times when the request times out.",
    ),
]


def text(random: Random, outdoors: bool, number: int) -> tuple[str, str]:
    """Return a passage, and a question about it with its answer; kinds take turns by ``number``."""
    kinds = OUTDOORS if outdoors else INDOORS
    passage, question, answer = kinds[number % len(kinds)]
    words = {slot: random.choice(choices) for slot, choices in SLOTS.items()}
    filled = [part.format(**words) for part in (passage, question, answer)]
    filled = [part[0].upper() + part[1:] for part in filled]
    return filled[0], f"{filled[1]} {filled[2]}"


def code(random: Random, number: int) -> tuple[str, str]:
    """Return a Python snippet, and what it is for; kinds take turns by ``number``."""
    snippet, intent = SNIPPETS[number % len(SNIPPETS)]
    words = {slot: random.choice(choices) for slot, choices in SLOTS.items()}
    return snippet.format(**words), intent.format(**words)
