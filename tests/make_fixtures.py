"""Small data sets in the formats that people train from, drawn by the geometry world.

`python tests/make_fixtures.py` writes tests/fixtures/.
"""
import csv
import io
import json
import shutil
import sys
from pathlib import Path

import datasets

FIXTURES = Path(__file__).parent/"fixtures"
N = 6       # problems in each set
PICTURED = datasets.Features(dict(images=datasets.List(datasets.Image()),
                                  problem=datasets.Value("string"),
                                  answer=datasets.Value("string")))


def problems():
    from calibrl import geometry
    return geometry.problems(N, seed=11, split="train")


def png(image):
    out = io.BytesIO()
    image.convert("RGB").quantize(64).save(out, "PNG", optimize=True)
    return out.getvalue()


def parquet(rows, path):
    "As pandas and verl write it: nothing tells that a struct of bytes and path is a picture."
    import pyarrow
    from pyarrow.parquet import write_table
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(pyarrow.Table.from_pylist(rows), path)


def pictured(rows, path, **columns):
    "As the hub's own library writes it: the table says which columns are pictures."
    path.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features(PICTURED | columns)
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)


def lines(rows, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def user(content):
    return dict(role="user", content=content)


def virl39k(folder, ps, pictures):
    "Paths beside the table, boxed answers; the pictures also serve the plain files."
    for place in ("virl39k", "plain"):
        (folder/place/"images").mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(pictures):
            (folder/place/"images"/f"{i}.png").write_bytes(picture)
    rows = [dict(question="<image>" + p.question, answer=f"\\boxed{{{p.answer}}}",
                 PassRate_32BTrained=.5, PassRate_7BBase=.25, category="(GradeSchool) Geometric",
                 source="drawn", qid=f"drawn-{i}", image=[f"images/{i}.png"])
            for i, p in enumerate(ps)]
    parquet(rows, folder/"virl39k/39Krelease.parquet")


def easyr1(folder, rows):
    "EasyR1's columns, with Geometry3K's beside them, saved as a folder and as a hub keeps it."
    pictured(rows, folder/"easyr1.parquet")
    lettered = [row | dict(id=100 + i, choices=[row["answer"], "1", "2", "3"], ground_truth="A")
                for i, row in enumerate(rows)]
    pictured(lettered, folder/"geometry3k.parquet", id=datasets.Value("int64"),
             choices=datasets.List(datasets.Value("string")),
             ground_truth=datasets.Value("string"))
    datasets.Dataset.from_list(rows, features=PICTURED).save_to_disk(folder/"saved")

    # the copy of a hub repository with two configurations
    for name, part in (("easy", rows[:3]), ("all", rows)):
        for split, some in (("train", part[1:]), ("test", part[:1])):
            pictured(some, folder/"hub"/name/f"{split}-00000-of-00001.parquet")
    card = "".join(CONFIGURATION.format(name=name) for name in ("all", "easy"))
    (folder/"hub/README.md").write_text(f"---\nconfigs:\n{card}---\nDrawn geometry.\n")


CONFIGURATION = """\
- config_name: {name}
  data_files:
  - split: train
    path: {name}/train-*
  - split: test
    path: {name}/test-*
"""


def verl(folder, ps, images):
    "CalibRL's solution in its three forms."
    forms = dict(text=lambda expert: expert,
                 list=lambda expert: [dict(role="assistant", content=expert)],
                 record=lambda expert: dict(content=expert))
    for name, form in forms.items():
        rows = [verl_row(p, i, images[i]) | dict(solution=form(p.expert))
                for i, p in enumerate(ps)]
        parquet(rows, folder/f"verl_{name}.parquet")


def verl_row(p, i, image):
    bare = f"<image>{p.question}"
    asked = bare + " Put the final answer in \\boxed{}."
    return dict(data_source="drawn/geometry", prompt=[user(asked)], images=[image], ability="math",
                reward_model=dict(style="rule", ground_truth=p.answer),
                extra_info=dict(split="train", index=i, answer=p.answer, question=bare))


def trl(folder, ps, images):
    "Messages in parts, and plain text with the answer boxed at the end of its solution."
    system = dict(role="system", content=[dict(type="text", text="Answer the question.")])
    rows = []
    for image, p in zip(images, ps, strict=True):
        parts = [dict(type="image", text=None), dict(type="text", text=p.question)]
        rows.append(dict(prompt=[system, user(parts)], image=image, solution=p.expert))
    parquet(rows, folder/"trl_messages.parquet")

    rows = []
    for i, p in enumerate(ps):
        thought = p.expert.removeprefix("<think>").partition("</think>")[0]
        rows.append(dict(prompt=p.question, image=f"images/{i}.png", answer=int(p.answer),
                         solution=f"{thought}, so it is \\boxed{{{p.answer}}}"))
    lines(rows, folder/"plain/trl_text.jsonl")


def plain(folder, ps, pictures):
    "Our own columns as JSON Lines and as a table with other names, and rows that are faulty."
    good = [dict(question=p.question, answer=p.answer, image=f"images/{i}.png", expert=p.expert,
                 level="drawn") for i, p in enumerate(ps)]
    lines(good, folder/"plain/problems.jsonl")
    with open(folder/"mapped.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["aufgabe", "ergebnis", "bild", "weg", "stufe"])
        table.writerows([p.question, p.answer, f"plain/images/{i}.png", p.expert, "leicht"]
                        for i, p in enumerate(ps))

    # the second row, spoilt in each way, among three that can be used
    spoilt = [dict(image="images/none.png"), dict(image="broken.png"),
              dict(image="../easyr1.parquet"), dict(answer="  "), dict(answer=None),
              dict(question="<image>Left or right?<image>"),
              dict(question="<|vision_start|> How long?"), dict(question="")]
    wrong = "<think>guess</think><answer>987</answer>"
    bad = [good[0], *(good[1] | fault for fault in spoilt), good[2] | dict(expert=None),
           good[3] | dict(expert=wrong), good[1] | dict(answer="E", options=["1", "2"])]
    lines(bad, folder/"plain/faulty.jsonl")
    with open(folder/"plain/faulty.jsonl", "a") as file:
        file.write('{"question": "cut in the mid\n')
    (folder/"plain/broken.png").write_bytes(pictures[0][:300])


def make(folder):
    "Write every data set below `folder`."
    folder = Path(folder)
    ps = problems()
    pictures = [png(p.images[0]) for p in ps]
    images = [dict(bytes=picture, path=None) for picture in pictures]
    rows = [dict(images=[image], problem="<image>" + p.question, answer=p.answer)
            for image, p in zip(images, ps, strict=True)]
    virl39k(folder, ps, pictures)
    easyr1(folder, rows)
    verl(folder, ps, images)
    trl(folder, ps, images)
    plain(folder, ps, pictures)
    return folder


if __name__ == "__main__":
    datasets.disable_progress_bars()
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FIXTURES
    if target.exists():
        shutil.rmtree(target)
    print(make(target))
