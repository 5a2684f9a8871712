"""Attack the image decoder with hostile images, in child processes as the service does.

Each must decode or be refused as `BadInput`, cost under 5 s of CPU and 1 GiB, and end its child by
nothing but those limits; afterwards a photo still decodes and nothing is left open. The exit status
is 1 if one did not. Seed and number name an input: `support.attacks.images.make(seed, number)`.
"""

import argparse
import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Iterator

from support.attacks import images
from support.images import decoding_costs
from support.images.decoding import PHOTO, idle, open_files
from support.images.decoding_costs import MeteredDecoder, Outcome


def progress(seed: int, numbers: range) -> Iterator[tuple[int, str, bytes]]:
    began_s = time.monotonic()
    for number in numbers:
        done = number - numbers.start
        if done and done % 250 == 0:
            took_s = time.monotonic() - began_s
            sys.stderr.write(f"{done} of {len(numbers)} in {took_s:.0f} s\n")
        yield number, *images.make(seed, number)


async def attack(
    metered: list[MeteredDecoder], seed: int, numbers: range
) -> tuple[list[Outcome], str]:
    """Return the outcomes, and what is wrong with the decoders afterwards, if anything."""
    spares, files = len(await idle(len(metered))), open_files()
    outcomes = await decoding_costs.judge_all(metered, progress(seed, numbers))
    decoded = await metered[0].decode(PHOTO)
    left = len(await idle(len(metered))), open_files(), decoded.image.size
    wanted = spares, files, (640, 480)
    return outcomes, "" if left == wanted else f"the decoders are left with {left}, not {wanted}\n"


def tabulate(outcomes: list[Outcome]) -> str:
    by_attack: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_attack[outcome.attack].append(outcome)
    titles = ("tried", "decoded", "BadInput", "of it costly", "worst CPU s", "worst MiB", "faults")
    lines = [f"{'attack':<24}" + "".join(f"{title:>13}" for title in titles)]
    for name, group in {**by_attack, "all": outcomes}.items():
        decoded = sum(not outcome.code for outcome in group)
        costly = sum(outcome.code == "image_too_costly" for outcome in group)
        cpu_s = max(outcome.cpu_s for outcome in group)
        mib = max(outcome.rss_bytes for outcome in group) >> 20
        faulty = sum(bool(outcome.faults) for outcome in group)
        counts = f"{len(group):>13}{decoded:>13}{len(group) - decoded:>13}{costly:>13}"
        lines.append(f"{name:<24}{counts}{cpu_s:>13.2f}{mib:>13}{faulty:>13}")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=5000, help="inputs (default: 5000)")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    parser.add_argument("--first", type=int, default=0, help="number of the first (default: 0)")
    options = parser.parse_args()
    numbers = range(options.first, options.first + options.count)
    with decoding_costs.metered() as metered:
        outcomes, wrong = asyncio.run(attack(metered, options.seed, numbers))
    sys.stdout.write(tabulate(outcomes) + wrong)
    for outcome in outcomes:
        for fault in outcome.faults:
            sys.stdout.write(f"seed {options.seed}, number {outcome.number}: {fault}\n")
    return 1 if wrong or any(outcome.faults for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
