"""The lexicon of the built-in corpus: who, where, when and what. The sentences are in beats, plots and journeys.

Every list is a set of free choices that fit wherever its slot occurs. So that a tiny model can learn them, words
that a story must repeat (a name, the object it is about) are short and common; variety comes from the rest.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GIRLS = _words(
    "Lily Mia Anna Sue Emma Rose Lucy Amy Ella Ruby Zoe Jane Kate Nora Clara Grace Ivy Molly Sara Tina"
)
BOYS = _words(
    "Tom Ben Sam Max Tim Leo Jack Finn Noah Luke Adam Paul Oscar Henry Peter Dan Joe Eric Hugo Otis"
)
SHE_ANIMALS = _words("Dot Bella Poppy Honey Fern Daisy Pearl Misty Coco Penny")
HE_ANIMALS = _words("Pip Nut Bruno Rusty Fuzzy Buddy Scout Ziggy Milo Otto")

ANIMALS = _words("rabbit bear mouse fox squirrel cat pig monkey")
FRIENDS = _words("otter badger duck goose donkey owl hedgehog beaver")
FAMILY = {"mom": "she", "dad": "he", "grandma": "she", "grandpa": "he"}

NATURES = _words(
    "little young small happy clever brave kind curious cheerful quiet gentle funny shy lively polite dreamy"
)

HOMES = (
    "in a small town",
    "in a busy village",
    "in a tall house with a blue door",
    "in a cottage full of roses",
    "in a flat above a bakery",
    "in a noisy city",
    "in a valley full of sheep",
    "on a quiet street",
    "on a farm with nine cows",
    "at the top of a steep hill",
    "at the end of a long road",
    "near the railway station",
    "near the school",
    "by the sea",
    "beside a green meadow",
    "across from the post office",
)
DENS = (
    "in a hollow tree",
    "in a cozy den",
    "in a burrow under the oak",
    "in a thick forest",
    "in a nest of dry straw",
    "under a thorny hedge",
    "under the roots of a willow",
    "behind a waterfall",
    "behind the miller's barn",
    "at the edge of the woods",
    "on a mossy hill",
    "by a shallow stream",
)

CHILD_HOBBIES = (
    "draw with chalk",
    "sing in the bath",
    "hop over puddles",
    "collect pebbles",
    "paint rainbows",
    "read about dinosaurs",
    "play the piano",
    "dress up as a queen",
    "pretend to be an astronaut",
    "swing very high",
    "look at the moon",
    "dig in the sand",
    "blow bubbles",
    "jump in piles of leaves",
    "tell silly jokes",
    "climb fences",
    "feed the pigeons",
    "make up riddles",
    "fold paper planes",
    "walk on stilts",
    "wear odd socks",
    "talk to the chickens",
    "count the stars",
    "ask difficult questions",
    "listen to the radio",
    "slide down the stairs",
    "build railways",
    "catch snowflakes",
    "act like a pirate",
    "run barefoot",
    "clap and stamp",
    "invent machines",
)
ANIMAL_HOBBIES = (
    "roll down the hill",
    "chase butterflies",
    "nap in the sunshine",
    "splash in the brook",
    "gather acorns",
    "sniff the flowers",
    "hide in tall grass",
    "eat blackberries",
    "dance in the moonlight",
    "balance on logs",
    "hum to the moon",
    "tickle sleepy beetles",
    "slide on the ice",
    "watch the clouds",
    "knock on hollow stumps",
    "tiptoe past the bees",
    "polish smooth stones",
    "wiggle to music",
    "play in the mud",
    "gaze at the fireflies",
)
LOOKS = (
    "a big smile",
    "bright eyes",
    "a loud laugh",
    "a kind heart",
    "freckles on the nose",
    "muddy feet",
    "a head full of ideas",
    "a very good memory",
    "a hundred plans",
    "pockets full of surprises",
    "a voice like a trumpet",
    "a giggle that never stopped",
)

DAYS = (
    "day",
    "morning",
    "afternoon",
    "sunny day",
    "windy afternoon",
    "cloudy day",
    "cool autumn morning",
    "warm spring day",
    "hot summer day",
    "gray and gusty morning",
    "bright Sunday morning",
    "lazy Saturday",
    "fine Monday",
    "misty Tuesday morning",
    "golden Friday afternoon",
    "crisp Thursday",
    "ordinary Wednesday",
    "quiet holiday",
)
SIGHTS = (
    "A snail crept along the wall.",
    "The birds were chirping.",
    "Two sparrows quarreled on the roof.",
    "The air smelled of pine and honey.",
    "The grass was wet with dew.",
    "A breeze shook the branches.",
    "Fresh rolls lay in the baker's basket.",
    "Tiny ants marched across the path.",
    "A tractor rattled past.",
    "Somewhere a rooster crowed.",
    "The sky was as blue as ink.",
    "A plane hummed far above.",
    "The leaves rustled and whispered.",
    "A chestnut rolled down the lane.",
    "Geese flew south in a long line.",
    "The sun peeped over the chimneys.",
    "A woodpecker was hard at work.",
    "Spider webs sparkled on the bushes.",
    "Smoke curled from every chimney.",
    "A lizard warmed its belly on a rock.",
    "The shadows were long and soft.",
    "A ladybug climbed up a blade of grass.",
    "White sails drifted far out at sea.",
    "A swarm of gnats danced in the light.",
    "The fields looked like a carpet.",
    "Crows hopped about in the stubble.",
)

COLORS = _words("red blue green yellow purple pink white brown orange silver")
TOYS = _words("ball kite doll drum truck hat book key ring bell")
FOODS = _words("cake pie pear sandwich melon apple cookie plum")
FRAGILE = _words("cup plate vase lamp clock bowl jar mirror")
CRAFTS = _words("card crown picture mask candle flag")
STRAYS = _words("bird kitten puppy frog lamb turtle goat pony")
PLANTS = _words("sunflower pumpkin bean carrot tomato pea")
NOISES = _words("branch cricket moth gate pipe mop")
FEARS = (
    "the dark",
    "the big slide",
    "the deep pool",
    "the high bridge",
    "the noisy train",
    "the black cave",
    "the barking dog",
    "the tall ladder",
)
SKILLS = _words("swim whistle skate juggle knit ski sew yodel")
TASKS = (
    "feed the hens",
    "water the flowers",
    "sweep the floor",
    "wash the dishes",
    "walk the dog",
    "set the table",
    "rake the leaves",
    "carry the wood",
)
TRIPS = _words("zoo beach museum circus market island lighthouse theater")
RACES = (
    "sack race",
    "boat race",
    "egg race",
    "swimming race",
    "wagon race",
    "potato race",
)
GAMES = (
    "tag",
    "hide and seek",
    "pirates",
    "knights",
    "leapfrog",
    "chess",
    "checkers",
    "explorers",
)
STORMS = _words("storm")

SPOTS = (
    "under the bed",
    "behind the sofa",
    "in the shed",
    "on the top shelf",
    "under a heap of leaves",
    "behind the old oak",
    "in the tall grass",
    "beside the well",
    "under the bench",
    "in the hay",
    "behind the curtain",
    "beside the mailbox",
    "in the rose bush",
    "under the porch",
    "in the laundry basket",
    "behind the garden wall",
    "next to the pond",
    "in the attic",
)
JUNK = (
    "a dusty sock",
    "an old shoe",
    "a sleepy spider",
    "a rusty nail",
    "a piece of string",
    "a broken umbrella",
    "a very surprised worm",
    "half a pencil",
    "a grumpy toad",
    "a heap of crumbs",
    "an empty box",
    "a long gray feather",
    "a torn map",
    "a spare wheel",
    "a wooden spoon",
    "a pair of glasses",
)
TREATS = (
    "toast and butter",
    "cheese and crackers",
    "hot cocoa",
    "popcorn",
    "noodles",
    "raspberries with cream",
    "grapes",
    "roasted nuts",
    "cold lemonade",
    "vanilla yogurt",
    "sweet corn",
    "baked potatoes",
    "raisins",
    "spaghetti",
    "ice cream",
    "warm milk",
    "apricots",
    "pickles",
    "blueberries",
    "rice with cinnamon",
    "peanuts",
    "chocolate",
    "mint tea",
    "scrambled eggs",
)
SAD = _words("sad upset worried gloomy unhappy glum miserable troubled")
GLAD = _words("happy glad proud cheerful joyful delighted merry thankful thrilled content")
SOFTLY = _words("softly gently kindly quietly warmly calmly sweetly patiently")
LAUGHS = _words("laughed smiled cheered giggled beamed grinned chuckled clapped")

SLOTS = {
    "home": HOMES,
    "den": DENS,
    "child_hobby": CHILD_HOBBIES,
    "animal_hobby": ANIMAL_HOBBIES,
    "look": LOOKS,
    "day": DAYS,
    "sight": SIGHTS,
    "spot": SPOTS,
    "junk": JUNK,
    "treat": TREATS,
    "sad": SAD,
    "glad": GLAD,
    "softly": SOFTLY,
    "laughed": LAUGHS,
}
