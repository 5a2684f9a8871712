"""The words of the training instructions: names for the edits, and the sentences around them.

Braces are slots. Filled by any word: {o} an object, {k} colours, {x} and {y} nouns, {g} random letters.
Filled by the strength: {c} before an adjective, {v} before a verb, {e} at the end, {n} before a noun,
{a} after an article, {s} before a state.
"""

from dataclasses import dataclass

from retouch.demo.edits import PLAIN, SLIGHT, STRONG

OBJECTS = (
    *("it", "the image", "the photo", "the picture", "this photo", "this image", "this picture"),
    *("everything", "the whole image", "the whole photo", "my picture", "my image", "this shot"),
    *("the scene", "the shot", "this", "the entire picture"),
)
COLORS = ("the colors", "colors", "all colors", "the colours", "all the colors", "the tones")

STRENGTHS: dict[str, dict[float, tuple[str, ...]]] = {
    "c": {
        PLAIN: ("",),
        SLIGHT: (
            *("slightly ", "a little ", "a bit ", "a touch ", "somewhat ", "a tiny bit "),
            *("gently ", "subtly ", "mildly ", "just a little ", "ever so slightly ", "a tad "),
        ),
        STRONG: ("much ", "a lot ", "way ", "far ", "strongly ", "really "),
    },
    "v": {
        PLAIN: ("",),
        SLIGHT: ("slightly ", "gently ", "subtly ", "lightly ", "softly ", "mildly "),
        STRONG: ("strongly ", "heavily ", "really ", "drastically "),
    },
    "e": {
        PLAIN: ("",),
        SLIGHT: (
            *(" slightly", " a little", " a bit", " a touch", " a little bit", " just a bit"),
            *(" gently", " subtly", " just a little", " ever so slightly", " a tad"),
        ),
        STRONG: (" strongly", " a lot", " very much", " heavily", " drastically"),
    },
    "n": {
        PLAIN: ("", "", "some "),
        SLIGHT: (
            *("gentle ", "subtle ", "light ", "slight ", "a little ", "a bit of ", "soft "),
            *("gentle ", "subtle ", "a touch of ", "a hint of ", "just a little ", "faint "),
            *("very light ", "very subtle ", "delicate ", "mild ", "slightly more ", "a gentle "),
        ),
        STRONG: ("strong ", "heavy ", "a lot of ", "intense ", "lots of ", "extreme "),
    },
    "a": {
        PLAIN: ("",),
        SLIGHT: (
            *("gentle ", "subtle ", "light ", "slight ", "soft ", "faint "),
            *("delicate ", "mild ", "very subtle ", "slightly "),
        ),
        STRONG: ("strong ", "heavy ", "deep ", "intense ", "powerful "),
    },
    "s": {
        PLAIN: ("",),
        SLIGHT: ("slightly ", "a little ", "a bit ", "gently ", "subtly "),
        STRONG: ("very ", "really ", "extremely "),
    },
}
"""Words for each amount, by slot. One slot of a sentence gets one, the others stay plain."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The words for one edit, by their role in a sentence."""

    adjectives: tuple[str, ...] = ()  # make it {warmer}
    states: tuple[str, ...] = ()  # make it {warm}
    verbs: tuple[str, ...] = ()  # {warm up the photo}
    looks: tuple[str, ...] = ()  # give it a {warm} look
    things: tuple[str, ...] = ()  # add {film grain}
    colors: bool = False  # also used of colours: make the colors {warmer}


def _verbs(verbs: tuple[str, ...], noun: str) -> tuple[str, ...]:
    return tuple(f"{{v}}{verb} {noun}{{e}}" for verb in verbs)


_MORE = ("increase", "boost", "raise", "turn up", "enhance", "push")
_LESS = ("reduce", "decrease", "lower", "turn down", "cut")

LEXICON: dict[str, Entry] = {
    "warmer": Entry(
        ("warmer", "more golden"),
        ("warm",),
        ("{v}warm up {o}{e}", "{v}warm {o} up{e}", "use {c}warmer colors", "{v}warm {o}{e}"),
        ("warm", "warm golden", "warm orange", "sunny", "cozy"),
        ("warmth", "warm light", "golden light", "warm tones"),
        colors=True,
    ),
    "cooler": Entry(
        ("cooler", "colder", "icier", "chillier"),
        ("cold", "cool", "look like winter"),
        ("{v}cool down {o}{e}", "{v}cool {o} down{e}", "use {c}cooler colors", "{v}cool {o}{e}"),
        ("cold", "cool", "cold blue", "cool blue", "icy", "wintry", "chilly"),
        ("cold light", "cool tones", "coldness"),
        colors=True,
    ),
    "brighter": Entry(
        ("brighter", "lighter", "less dark"),
        ("bright", "light"),
        (
            *("{v}brighten {o}{e}", "{v}brighten up {o}{e}", "{v}lighten {o}{e}"),
            *_verbs((*_MORE, "bump up"), "the brightness"),
            *("{c}more light", "{c}more brightness", "{v}lift the shadows{e}"),
            "{o} is too dark, make it {c}brighter",
        ),
        ("bright", "light", "luminous"),
        ("brightness", "light"),
    ),
    "darker": Entry(
        ("darker", "dimmer", "gloomier", "less bright"),
        ("dark", "dim", "gloomy", "look like night"),
        (
            *("{v}darken {o}{e}", "{v}dim {o}{e}", "turn {o} into night", "turn day into night"),
            *_verbs((*_LESS, "tone down"), "the brightness"),
            *("{c}less light", "{c}less brightness", "{o} is too bright, {v}darken it{e}"),
        ),
        ("dark", "gloomy", "night", "dim"),
        ("darkness",),
    ),
    "more_contrast": Entry(
        ("more contrasty", "punchier", "higher in contrast"),
        ("contrasty", "high contrast"),
        (
            *_verbs((*_MORE, "pump up", "strengthen"), "the contrast"),
            *("{c}more contrast", "high contrast", "{o} looks flat, boost the contrast{e}"),
            *("{o} needs {c}more contrast", "give {o} {c}more contrast"),
        ),
        ("high contrast", "punchy", "contrasty"),
        ("contrast",),
    ),
    "less_contrast": Entry(
        ("flatter", "less contrasty", "more faded", "lower in contrast"),
        ("faded", "flat", "low contrast", "washed out"),
        (
            *_verbs((*_LESS, "soften", "weaken"), "the contrast"),
            *("{c}less contrast", "low contrast", "{v}fade {o}{e}", "{v}flatten the tones{e}"),
            *("{o} has too much contrast, {v}reduce it{e}", "give {o} {c}less contrast"),
        ),
        ("faded", "flat", "low contrast", "washed out", "matte"),
    ),
    "black_and_white": Entry(
        (),
        ("black and white", "grayscale", "monochrome", "gray", "colorless"),
        (
            *("convert {o} to black and white", "convert to black and white", "black and white"),
            *("remove the color", "remove all color", "remove all the color from {o}"),
            *("take away the colors", "take the color out", "strip the colors from {o}"),
            *("turn {o} into a grayscale photo", "convert {o} to grayscale", "in black and white"),
            *("desaturate {o} completely", "no color", "drain all color from {o}", "no colors"),
            *("only shades of gray", "turn {o} black and white", "a black and white photo"),
            *("a black and white version of {o}", "I want a monochrome photograph", "grey tones"),
        ),
        ("black and white", "monochrome", "grayscale"),
    ),
    "sepia": Entry(
        (),
        ("sepia", "sepia toned", "look like an old photo", "look vintage", "look antique"),
        (
            *("apply a sepia tone", "sepia tone", "tone {o} in sepia", "sepia", "in sepia"),
            *("convert {o} to sepia", "turn {o} into a sepia photo", "a sepia version of {o}"),
            *("turn {o} sepia", "age {o} like an old photograph", "make an old brown photo of {o}"),
        ),
        ("sepia", "vintage sepia", "vintage", "antique", "old brown"),
    ),
    "invert": Entry(
        (),
        ("a negative", "look like a negative", "inverted"),
        (
            *("invert the colors", "invert {o}", "invert all colors", "inverted colors", "invert"),
            *("turn {o} into a negative", "turn {o} into a photo negative", "photo negative"),
            *("flip the colors", "reverse the colors", "make a negative of {o}", "negative"),
            *("swap dark and light", "show {o} as a negative", "the negative of {o}"),
            *("swap all colors for their opposites", "reverse all the tones of {o}"),
        ),
        ("negative", "inverted"),
    ),
    "more_saturation": Entry(
        ("more vivid", "more colorful", "more saturated", "more vibrant", "richer in color"),
        ("vivid", "colorful", "vibrant", "pop"),
        (
            *_verbs((*_MORE, "bump up"), "the saturation"),
            *_verbs(("boost", "intensify", "enrich", "strengthen"), "the colors"),
            *("{v}saturate {o}{e}", "{c}more saturation", "{c}more color", "{c}stronger colors"),
            *("make the colors pop{e}", "{o} looks dull, {v}boost the colors{e}"),
        ),
        ("vivid", "colorful", "vibrant", "saturated"),
        ("saturation", "color", "vibrance"),
        colors=True,
    ),
    "less_saturation": Entry(
        ("less vivid", "more muted", "less colorful", "less saturated", "paler", "less intense"),
        ("muted", "pale", "dull", "desaturated"),
        (
            *_verbs((*_LESS, "tone down"), "the saturation"),
            *_verbs(("mute", "soften", "tone down", "weaken"), "the colors"),
            *("{v}desaturate {o}{e}", "{c}less saturation", "{c}less color", "use muted colors"),
        ),
        ("muted", "pale", "desaturated", "pastel"),
        colors=True,
    ),
    "grain": Entry(
        ("grainier", "more grainy", "noisier"),
        ("grainy", "noisy", "look like analog film"),
        (
            *("{c}more grain", "{c}more film grain", "{c}more noise", "with {n}film grain"),
            *("with {n}noise", "sprinkle {n}grain over {o}", "cover {o} with {n}film grain"),
        ),
        ("grainy", "grainy film", "noisy", "old film", "analog film"),
        ("film grain", "film grain", "grain", "noise", "film noise"),
    ),
    "blur": Entry(
        ("blurrier", "more blurry", "softer", "less sharp", "less focused"),
        ("blurry", "blurred", "out of focus", "soft", "unsharp", "hazy"),
        (
            *("{v}blur {o}{e}", "{v}soften {o}{e}", "apply {n}blur", "apply a {a}blur"),
            *("{v}smooth {o}{e}", "{v}defocus {o}{e}", "with {n}blur"),
        ),
        ("blurry", "blurred", "soft focus", "hazy"),
        ("blur", "gaussian blur", "softness"),
    ),
    "sharpen": Entry(
        ("sharper", "crisper", "clearer", "less blurry", "more detailed"),
        ("sharp", "crisp", "clear"),
        (
            *("{v}sharpen {o}{e}", "{v}sharpen the details{e}", "bring out the details{e}"),
            *_verbs(_MORE, "the sharpness"),
            *("{c}more sharpness", "{c}more detail", "{o} is blurry, {v}sharpen it{e}"),
        ),
        ("sharp", "crisp"),
        ("sharpness", "clarity"),
    ),
    "vignette": Entry(
        (),
        ("dark at the edges", "dark in the corners"),
        (
            *("add a {a}vignette", "add a {a}vignette to {o}", "{v}darken the corners{e}"),
            *("{v}darken the edges{e}", "{v}darken the borders of {o}{e}", "with a {a}vignette"),
            *("add a {a}dark vignette around {o}", "apply a {a}vignette", "{v}vignette {o}{e}"),
            *("{v}darken the corners of {o}{e}", "make the corners {c}darker"),
            *("make the edges {c}darker", "{v}shade the borders{e}", "put a {a}vignette on {o}"),
        ),
        ("vignette", "vignetted"),
        ("vignette", "dark edges", "dark corners", "vignetting"),
    ),
}
for _name in ("red", "green", "blue", "purple"):
    LEXICON[_name] = Entry(
        (f"more {_name}", *(("redder",) if _name == "red" else ())),
        (_name,),
        (
            *(f"add a {{a}}{_name} tint", f"{{v}}tint {{o}} {_name}{{e}}", f"turn {{o}} {_name}"),
            *(f"{{v}}color {{o}} {_name}{{e}}", f"a {{a}}{_name} tint", f"{_name} tint"),
            *(f"bathe {{o}} in {{a}}{_name} light", f"a {{a}}{_name} filter over {{o}}"),
            *(f"add a {{a}}{_name} color cast to {{o}}", f"put {{o}} in {_name} light"),
        ),
        (_name,),
        (f"{_name} light", f"{_name} color"),
    )

UNCHANGED = (
    *("keep {o} unchanged", "do not change anything", "leave {o} as it is", "change nothing"),
    *("keep {o} as it is", "leave everything alone", "no changes", "do nothing", "no edit"),
    *("don't edit {o}", "keep everything the same", "leave {o} unchanged", "leave {o} alone"),
    *("don't touch {o}", "return {o} as is", "keep the original", "just keep {o} like this"),
)
BLANK = (" ", " ", "", "low quality", "low quality, artifacts", "blurry, ugly, bad quality")

NOUNS = (
    *("cat", "dog", "person", "man", "woman", "child", "face", "hat", "tree", "house"),
    *("car", "boat", "sky", "background", "cup", "table", "flower", "mountain", "river"),
    *("sun", "moon", "street", "building", "bird", "horse", "text", "logo", "shirt", "hair"),
    *("eyes", "hand", "door", "window", "road", "grass", "beach", "cake", "book", "lamp"),
    *("chair", "bridge", "castle", "robot", "dragon", "balloon", "umbrella", "snow"),
)
OUT_OF_SCOPE = (
    *("replace the {x} with a {y}", "remove the {x}", "add a {x}", "put a {x} on the {y}"),
    *("turn the {x} into a {y}", "make the {x} bigger", "make the {x} smaller", "draw a {x}"),
    *("move the {x} to the left", "rotate the {x}", "crop the {x}", "zoom in on the {x}"),
    *("change the background to a {x}", "give the {x} a {y}", "write hello on the {x}"),
    *("make the {x} smile", "swap the {x} and the {y}", "what is this", "hello world", "{x}"),
    *("make the {x} red", "make the {x} green", "make the {x} purple", "paint the {x} blue"),
    *("in the style of van gogh", "make it a cartoon", "make it an oil painting", "flip it"),
    *("make only the {x} darker", "make only the {x} black and white", "{g}", "{g} {g}"),
    *("{g} the {x}", "make it {g}", "{g} {g} {g}", "turn it upside down", "erase the {x}"),
)

PREFIXES = (*("",) * 6, *("please ", "can you ", "could you ", "now ", "I want you to ", "hey, "))
SUFFIXES = (*("",) * 5, ".", " please", "!", ", please", " for me", ", thanks")
CONJUNCTIONS = (" and ", " and ", ", ", " then ", ", and ", " and then ", ", also ", " plus ")
