"""Draw what the long runs gave, from their records, for the first page: `python tools/result.py`.

Means over the seeds and over the last steps of the samples' accuracy and of the entropy; the
values at the ends of the curves are computed, like the curves.
"""
from pathlib import Path

from calibrl.compare import curve_of, records

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT/"nbs/images/result.svg"
SPAN = 20                                   # steps of a running mean
RUNS = {  # the name of a curve, and how the records name its method
    "CalibRL": ("calibrl:gap=sequence,alpha=0", "#0072B2"),
    "GRPO": ("grpo", "#D55E00")}
PANELS = {  # what is drawn, its title, its upper end, how a value is written
    "accuracy": ("answers that are right", .8, "{:.0%}"),
    "entropy": ("entropy, nats a token", .2, "{:.2f}")}
LEFT, WIDE, TOP, HIGH, STEP = 20, 235, 50, 150, 325


def smooth(values):
    "Return running means, the first over fewer steps."
    parts = [values[max(0, i + 1 - SPAN):i + 1] for i in range(len(values))]
    return [sum(part)/len(part) for part in parts]


def curves(key, found=None):
    "Return the running mean over the seeds of each run, by its name."
    found = found or records(ROOT/"nbs/records/compare/long.jsonl")
    made = {}
    for name, (spec, _) in RUNS.items():
        seeds = [curve_of(record, key) for record in found if record["spec"] == spec]
        made[name] = smooth([sum(step)/len(step) for step in zip(*seeds, strict=True)])
    return made


def line(values, top, left, colour):
    "Return a curve as SVG."
    last = len(values) - 1
    points = [f"{left + WIDE*i/last:.1f},{TOP + HIGH*(1 - value/top):.1f}"
              for i, value in enumerate(values) if i % 3 == last % 3]
    return (f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}"'
            ' stroke-width="2.5"/>')


def panel(key, left):
    "Return one panel: its title, its axes, a curve for each run and where it ends."
    title, top, form = PANELS[key]
    parts = [f'<text x="{left}" y="36">{title}</text>',
             f'<text x="{left - 12}" y="{TOP + HIGH + 5}">0</text>',
             f'<path d="M{left} {TOP}v{HIGH}h{WIDE}" fill="none" stroke="#999"/>']
    made = curves(key)
    ends = sorted(made, key=lambda name: made[name][-1])
    low = TOP + HIGH*(1 - made[ends[0]][-1]/top)
    high = min(TOP + HIGH*(1 - made[ends[1]][-1]/top), low - 17)
    for name, y in zip(ends, (low, high), strict=True):
        colour = RUNS[name][1]
        said = form.format(made[name][-1])
        parts += [line(made[name], top, left, colour),
                  f'<text x="{left + WIDE + 5}" y="{y + 5:.0f}" style="fill:{colour}">'
                  f'{said}</text>']
    steps = len(made["GRPO"])
    parts.append(f'<text x="{left + WIDE}" y="{TOP + HIGH + 19}" text-anchor="end">'
                 f'{steps} steps</text>')
    return "\n".join(parts)


def picture():
    "Return both panels as one SVG."
    names = "".join(f'<tspan style="fill:{colour};font-weight:bold">{name}</tspan>'
                    f'<tspan>{" beside " if name == "CalibRL" else ""}</tspan>'
                    for name, (_, colour) in RUNS.items())
    said = {key: {name: PANELS[key][2].format(values[-1])
                  for name, values in curves(key).items()} for key in PANELS}
    about = "; ".join(f"{PANELS[key][0]}: " + ", ".join(f"{n} {v}" for n, v in ends.items())
                      for key, ends in said.items())
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 225" role="img" '
        f'aria-label="{about}">',
        '<style>text{font:14px sans-serif;fill:#777}</style>',
        f'<text x="{LEFT}" y="14">{names}</text>',
        panel("accuracy", LEFT), panel("entropy", LEFT + STEP), "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
