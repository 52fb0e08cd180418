"""Write the badges of the first page into nbs/images from settings.ini: `python tools/badges.py`.

They are files, so that no page asks another server for them.
"""
from configparser import ConfigParser
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLUE = "#0072B2"
ORANGE = "#D55E00"
LICENCES = {"apache2": "Apache-2.0"}


def words(x, text):
    "Return one word of a badge, centred at x, as SVG."
    return f'<text x="{x:.0f}" y="14" text-anchor="middle">{escape(text)}</text>'


def badge(label, value, colour=BLUE):
    "Return a small two-part label as SVG."
    left, right = (6.6*len(text) + 12 for text in (label, value))
    side = right - 3
    return "".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right:.0f}" height="20" ',
        f'role="img" aria-label="{escape(label)}: {escape(value)}">',
        f'<rect width="{left + right:.0f}" height="20" rx="3" fill="#555"/>',
        f'<path d="M{left:.0f} 0h{side:.0f}a3 3 0 0 1 3 3v14a3 3 0 0 1 -3 3h-{side:.0f}z" ',
        f'fill="{colour}"/>',
        '<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">',
        f'{words(left/2, label)}{words(left + right/2, value)}</g></svg>\n'])


def badges():
    "Return the SVG of each badge by file name."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT/"settings.ini", encoding="utf-8")
    settings = config["DEFAULT"]
    about = {"version": settings["version"], "python": settings["min_python"] + "+",
             "licence": LICENCES[settings["license"]], "made with": "nbdev"}
    made = {}
    for label, value in about.items():
        colour = ORANGE if label == "version" else BLUE
        made[f"badge-{label.replace(' ', '-')}.svg"] = badge(label, value, colour)
    return made


if __name__ == "__main__":
    for name, svg in badges().items():
        (ROOT/"nbs/images"/name).write_text(svg, encoding="utf-8")
