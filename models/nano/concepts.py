"""What the nano judge knows: concepts, their words, and which drawings show them.

Takes nothing; gives CONCEPTS (name, phrase, alias, category, icon names) and DISTRACTORS (drawings
that are no concept). Does not know pixels, pictures or the model. Icon names are those of the
Iconify emoji sets; a set that lacks a name is skipped by drawings.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Concept:
    """One thing the judge can be asked about.

    `phrase` is the name with its article, `alias` a paraphrase, `icons` are Iconify names (several
    drawings may show the same concept), `weight` scales how often the generator draws it, which
    makes base rates differ.
    """

    name: str
    phrase: str
    alias: str
    category: str
    icons: tuple[str, ...]
    weight: float


def _c(
    name: str, phrase: str, alias: str, category: str, icons: str, weight: float = 1.0
) -> Concept:
    return Concept(name, phrase, alias, category, tuple(icons.split()), weight)


CONCEPTS: tuple[Concept, ...] = (
    _c("knife", "a knife", "a kitchen blade", "weapon", "kitchen-knife hocho"),
    _c("gun", "a gun", "a pistol", "weapon", "pistol water-pistol", 1.3),
    _c("bomb", "a bomb", "a round explosive with a fuse", "weapon", "bomb"),
    _c("dagger", "a dagger", "a pointed stabbing blade", "weapon", "dagger daggerknife"),
    _c("axe", "an axe", "a hatchet", "weapon", "axe axe2", 0.8),
    _c("fire", "fire", "a flame", "fire", "fire", 1.3),
    _c("explosion", "an explosion", "a blast", "fire", "collision"),
    _c("cigarette", "a cigarette", "something to smoke", "drug", "cigarette smokingsymbol"),
    _c("beer", "beer", "a beer mug", "drink", "beer-mug clinking-beer-mugs beermug", 1.3),
    _c("wine", "wine", "a glass of wine", "drink", "wine-glass wineglass red-wine-glass"),
    _c(
        "cocktail",
        "a cocktail",
        "a mixed drink",
        "drink",
        "cocktail-glass cocktailglass tropical-drink tropicaldrink",
    ),
    _c(
        "champagne bottle",
        "a champagne bottle",
        "a bottle with a popping cork",
        "drink",
        "bottle-with-popping-cork",
        0.8,
    ),
    _c("pill", "a pill", "a medicine capsule", "drug", "pill"),
    _c("syringe", "a syringe", "an injection needle", "drug", "syringe"),
    _c("skull", "a skull", "the bones of a head", "death", "skull skull-and-crossbones", 1.2),
    _c("coffin", "a coffin", "a box for the dead", "death", "coffin", 0.8),
    _c("drop of blood", "a drop of blood", "a red drop", "death", "drop-of-blood", 0.8),
    _c("die", "a die", "a dice cube", "gambling", "game-die", 0.8),
    _c(
        "slot machine",
        "a slot machine",
        "a one-armed bandit",
        "gambling",
        "slot-machine slotmachine",
    ),
    _c("money bag", "a money bag", "a sack of money", "gambling", "money-bag moneybag"),
    _c(
        "no-under-18 sign",
        "a no-under-18 sign",
        "an adults only sign",
        "sign",
        "no-one-under-eighteen",
    ),
    _c(
        "warning sign",
        "a warning sign",
        "a triangle with an exclamation mark",
        "sign",
        "warning warningsign",
        1.2,
    ),
    _c("radioactive sign", "a radioactive sign", "a radiation symbol", "sign", "radioactive", 0.8),
    _c(
        "biohazard sign",
        "a biohazard sign",
        "a symbol for dangerous germs",
        "sign",
        "biohazard",
        0.8,
    ),
    _c("pile of poo", "a pile of poo", "a heap of dung", "gesture", "pile-of-poo poo"),
    _c("middle finger", "a middle finger", "an obscene hand gesture", "gesture", "middle-finger"),
    _c(
        "angry face",
        "an angry face",
        "a furious face",
        "face",
        "angry-face angry pouting-face pouting enraged-face",
    ),
    _c(
        "crying face",
        "a crying face",
        "a face in tears",
        "face",
        "crying-face crying loudly-crying-face",
        1.2,
    ),
    _c(
        "laughing face",
        "a laughing face",
        "a face that laughs",
        "face",
        "face-with-tears-of-joy rolling-on-the-floor-laughing rolling-on-the-floor-laughing-1",
        1.2,
    ),
    _c(
        "heart",
        "a heart",
        "a love symbol",
        "love",
        "red-heart blue-heart green-heart purple-heart yellow-heart heartblue heartgreen "
        "heartpurple heartyellow growing-heart sparkling-heart",
        1.5,
    ),
    _c("kiss mark", "a kiss mark", "a print of lips", "love", "kiss-mark kissmark"),
    _c("bikini", "a bikini", "a two-piece swimsuit", "love", "bikini"),
    _c("cat", "a cat", "a kitten", "animal", "cat cat-face catside", 1.5),
    _c("dog", "a dog", "a puppy", "animal", "dog dog-face dogside", 1.5),
    _c("horse", "a horse", "a pony", "animal", "horse horse-face horseface"),
    _c("snake", "a snake", "a serpent", "animal", "snake"),
    _c("spider", "a spider", "an eight-legged crawler", "animal", "spider"),
    _c("scorpion", "a scorpion", "a crawler with a sting", "animal", "scorpion", 0.8),
    _c("shark", "a shark", "a fish that bites", "animal", "shark"),
    _c("rat", "a rat", "a rodent", "animal", "rat"),
    _c(
        "flower",
        "a flower",
        "a blossom",
        "plant",
        "blossom cherry-blossom tulip rose hibiscus sunflower sunflower-1",
        1.5,
    ),
    _c("tree", "a tree", "a woody plant", "plant", "deciduous-tree evergreen-tree palm-tree", 1.2),
    _c("apple", "an apple", "a round fruit with a stalk", "food", "red-apple green-apple"),
    _c("pizza", "a pizza", "a slice with cheese", "food", "pizza pizza-1"),
    _c("hamburger", "a hamburger", "a meat bun", "food", "hamburger hamburger-1"),
    _c("cake", "a cake", "a birthday dessert", "food", "birthday-cake birthday-cake-1 cake"),
    _c("car", "a car", "an automobile", "vehicle", "automobile oncoming-automobile", 1.5),
    _c("airplane", "an airplane", "a plane", "vehicle", "airplane small-airplane"),
    _c(
        "police car",
        "a police car",
        "a patrol car",
        "vehicle",
        "police-car oncoming-police-car policecar",
    ),
    _c("ambulance", "an ambulance", "a rescue van", "vehicle", "ambulance"),
    _c(
        "house",
        "a house",
        "a family home",
        "building",
        "house house-with-garden housebuilding housewithgarden",
        1.2,
    ),
    _c("school", "a school", "a building for lessons", "building", "school"),
    _c("hospital", "a hospital", "a building for the sick", "building", "hospital"),
    _c("church", "a church", "a chapel", "building", "church", 0.8),
    _c("soccer ball", "a soccer ball", "a football", "object", "soccer-ball soccerball"),
    _c("guitar", "a guitar", "an instrument with strings", "object", "guitar"),
    _c(
        "camera",
        "a camera",
        "a thing that takes photos",
        "object",
        "camera camera-with-flash camerawithflash",
    ),
    _c(
        "mobile phone",
        "a mobile phone",
        "a smartphone",
        "object",
        "mobile-phone mobile-phone-with-arrow phonerightarrowleft",
    ),
    _c("key", "a key", "a door opener", "object", "key old-key"),
    _c("lock", "a lock", "a padlock", "object", "locked lock"),
    _c("chains", "chains", "metal links", "object", "chains", 0.8),
    _c("star", "a star", "a five-pointed shape", "sky", "star glowing-star", 1.2),
    _c(
        "moon",
        "a moon",
        "a lunar shape",
        "sky",
        "crescent-moon full-moon first-quarter-moon last-quarter-moon-face",
    ),
)

# Drawn now and then, asked about never: the judge must say No to everything when only these are
# there.
DISTRACTORS: tuple[str, ...] = tuple(
    (
        "banana grapes watermelon pineapple broccoli carrot bread croissant cheese-wedge elephant "
        "penguin owl butterfly octopus turtle whale rabbit pig cow chicken bicycle rocket "
        "helicopter bus tram-car sailboat anchor umbrella balloon gift book pencil scissors "
        "hammer wrench light-bulb television laptop alarm-clock hourglass-done trophy crown "
        "top-hat necktie jeans t-shirt high-heeled-shoe glasses backpack handbag trumpet violin "
        "drum microphone headphone basketball tennis volleyball bowling sun cloud snowflake "
        "rainbow cactus mushroom herb globe-showing-americas thumbs-up ok-hand waving-hand "
        "clapping-hands thinking-face sleeping-face smiling-face-with-sunglasses grinning-face "
        "ghost robot alien "
    ).split()
)

ARTISTS: dict[str, str] = {  # Iconify set -> licence of its drawings
    "noto": "Apache-2.0",
    "noto-v1": "Apache-2.0",
    "fluent-emoji-flat": "MIT",
    "fluent-emoji": "MIT",
    "fxemoji": "Apache-2.0",
}
SHIPPABLE = (
    "noto",
    "noto-v1",
    "fluent-emoji-flat",
    "fluent-emoji",
    "fxemoji",
)  # licences that let pictures ship
