"""The format of a plot, and the beats that all plots share.

How a line is written:

- `{name}` is a slot: the hero (`name he him his himself`), the helper (`helper` at first, `pal` later), the
  thing that the plot is about (`x`, `a_x`, and with its colour `color_x`, `a_color_x`), or a free choice from
  a list of words.SLOTS. `{Name}` is capitalized.
- `<a|b>` is a free choice, and may hold slots.
- `[words]` mark a fact: from them the checker knows that something goes wrong, is solved, or is learned.
  They are printed without the brackets. No line of another plot may contain the same words.

A line whose first word is `{He}` is about the subject of the sentence before. The helper is
first named in `help` (or in `setup`, where the plot says so), and after that every line names its subject.
"""

import dataclasses

OPENING = (
    "Once upon a time, there was {a_nature_kind} named {name} who lived {lives}.",
    "Once upon a time, {a_nature_kind} named {name} lived {lives}.",
    "Once there was {a_nature_kind} named {name}.",
    "There once was {a_nature_kind} named {name} who had {look}.",
    "Once there was {a_nature_kind} named {name} who lived {lives}.",
    "Not so long ago, {a_nature_kind} named {name} lived {lives}.",
    "This is the story of {a_nature_kind} named {name}.",
    "Everybody knew {name}, {a_nature_kind} with {look}.",
)
HABIT = (
    "{He} <loved|liked> to {hobby}.",
    "{He} <loved|liked> to {hobby} <every day|all day long|after breakfast|before lunch>.",
    "Most of all, {he} liked to {hobby}.",
    "Nobody could {hobby} as well as {name}.",
    "On most days, {he} would {hobby}.",
)
FEELING = (
    "{name} felt <very |so |quite |rather |>{sad}.",
    "{He} was <very |so |quite |rather |>{sad}.",
    "A <big|single|hot|salty> tear ran down {his} <cheek|nose>.",
    "{name} <sighed|frowned|groaned|sniffed>.",
    "This made {name} {sad}.",
    '"Oh <no|dear|bother>!" {he} <cried|said|gasped|wailed>.',
)
REPLY = (
    "{name} nodded.",
    "{name} dried {his} eyes and nodded.",
    "{name} took a deep breath.",
    '"All right," said {name}.',
    '"Let us try," said {name}.',
    "{name} felt a little better.",
)
JOY = (
    "{name} and {pal} {laughed}.",
    "{name} {laughed} and hugged {pal}.",
    "{name} felt <very |so |quite |>{glad}.",
    "Everyone was {glad}.",
    '"<Hooray|Hurrah|Wonderful>!" <cried|shouted|sang> {name}.',
    "{name} could not stop smiling.",
)
THANKS = (
    '"Thank you so much!" said {name}.',
    "{name} {laughed} and thanked {pal}.",
)
FEAST = (
    "Then they all had {treat}.",
    "They <ate|had|enjoyed> {treat} <together|in the garden|by the fire|on the steps|until it got dark>.",
    "{Pal} brought {treat} for everyone.",
)
LESSON = (
    "{name} [learned that] {moral}.",
    "{name} had [learned that] {moral}.",
    "From that day on, {name} [knew that] {moral}.",
    "And {name} [never forgot that] {moral}.",
    "That <night|evening>, {name} [thought about it]: {moral}.",
    "Now {name} [understood that] {moral}.",
)
CLOSING = (
    "And that was the end of that.",
    "{name} smiled for a long time.",
    "And they all lived happily ever after.",
    "{name} still likes to tell the tale.",
    "{name} slept very well that night.",
)


@dataclasses.dataclass(frozen=True)
class Plot:
    """One plot: the things it can be about, and lines for each of its beats."""

    name: str
    things: tuple[str, ...]
    helpers: str  # "family", "friend", "stranger" (a friend to be) or "any" (family or friend)
    setup: tuple[str, ...]
    problem: tuple[str, ...]
    attempt: tuple[str, ...]
    help: tuple[str, ...]
    resolution: tuple[str, ...]
    moral: tuple[str, ...]
    is_object: bool = True  # the things are nouns, of which a story may name only one
    feels: bool = True  # the hero is sad about the problem
    reply: tuple[str, ...] = REPLY
    joy: tuple[str, ...] = JOY + THANKS + FEAST  # empty where the story ends at night
