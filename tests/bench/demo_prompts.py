"""The prompts of `demo_parts.py`. None of them is a wording of `wordings.json`."""

from retouch.demo.edits import SLIGHT, STRONG, Change

PROMPTS = {
    "unchanged": "keep the image unchanged",
    "warmer": "make the colors warmer",
    "cooler": "make the colors cooler",
    "brighter": "make the photo brighter",
    "darker": "make the photo darker",
    "more_contrast": "increase the contrast",
    "less_contrast": "reduce the contrast",
    "black_and_white": "convert to black and white",
    "sepia": "make it sepia",
    "invert": "invert the colors",
    "more_saturation": "make the colors more vivid",
    "less_saturation": "make the colors less saturated",
    "sharpen": "sharpen the photo",
    "vignette": "add a vignette",
    "red": "add a red tint",
    "green": "add a green tint",
    "blue": "add a blue tint",
    "purple": "add a purple tint",
    "blur": "blur the photo",
    "grain": "add film grain",
}
PAIRS = {
    "make it warmer and add a subtle vignette": (Change("warmer"), Change("vignette", SLIGHT)),
    "make colors warmer and add gentle film grain": (Change("warmer"), Change("grain", SLIGHT)),
    "make it brighter and add a vignette": (Change("brighter"), Change("vignette")),
    "make it black and white and increase the contrast": (
        Change("black_and_white"),
        Change("more_contrast"),
    ),
    "make it sepia and add a vignette": (Change("sepia"), Change("vignette")),
    "invert the colors and blur the photo": (Change("invert"), Change("blur")),
    "make it slightly darker and add a blue tint": (Change("darker", SLIGHT), Change("blue")),
    "add strong film grain and make it black and white": (
        Change("black_and_white"),
        Change("grain", STRONG),
    ),
}
SLIGHT_PROMPTS = {
    "make colors warmer and add gentle film grain": (Change("warmer"), Change("grain", SLIGHT)),
    "add gentle film grain": (Change("grain", SLIGHT),),
    "add subtle film grain": (Change("grain", SLIGHT),),
    "add a little film grain": (Change("grain", SLIGHT),),
    "slightly add film grain": (Change("grain", SLIGHT),),
    "gently make it warmer": (Change("warmer", SLIGHT),),
    "make it a little warmer": (Change("warmer", SLIGHT),),
    "subtly darken the photo": (Change("darker", SLIGHT),),
    "make it slightly brighter": (Change("brighter", SLIGHT),),
    "add a subtle vignette": (Change("vignette", SLIGHT),),
}
"""The words that mean slight. The first prompt is the README's example request."""
LADDERS = {
    "warmer": "make the photo {adverb}warmer",
    "cooler": "make the photo {adverb}cooler",
    "brighter": "make the photo {adverb}brighter",
    "darker": "make the photo {adverb}darker",
    "more_contrast": "{adverb}increase the contrast",
    "less_contrast": "{adverb}reduce the contrast",
    "more_saturation": "{adverb}increase the saturation",
    "less_saturation": "{adverb}reduce the saturation",
    "sharpen": "{adverb}sharpen the photo",
    "vignette": "add a {adjective}vignette",
    "red": "add a {adjective}red tint",
    "green": "add a {adjective}green tint",
    "blue": "add a {adjective}blue tint",
    "purple": "add a {adjective}purple tint",
    "blur": "{adverb}blur the photo",
    "grain": "add {adjective}film grain",
}
RUNGS = (
    {"adverb": "slightly ", "adjective": "light "},
    {"adverb": "", "adjective": ""},
    {"adverb": "strongly ", "adjective": "strong "},
)
OUT_OF_SCOPE = (
    *(
        "remove the background",
        "add sunglasses",
        "make the person smile",
        "turn it into a painting",
    ),
    *("replace the cat with a dog", "put a party hat on the head", "make the sky purple"),
    *("write SALE in big letters", "make it look like summer", "crop to the face", "hello world"),
    "translate the text into French",
)
FEW = ("chelsea", "coffee")
"""Two photographs, for the parts that would take too long with all."""
THREE = ("invert", "vignette", "blur")
SIZES = ((576, 448), (448, 576), (672, 384), (256, 256), (640, 640), (768, 768), (1024, 1024))
