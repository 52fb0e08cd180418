"""Small data sets in the formats that people train from, drawn by the geometry world. `python tests/make_fixtures.py` writes tests/fixtures/."""
import csv, io, json, shutil, sys
from pathlib import Path

FIXTURES = Path(__file__).parent/"fixtures"
N = 6


def problems():
    from calibrl import geometry
    return geometry.problems(N, seed=11, split="train")


def png(image):
    out = io.BytesIO()
    image.convert("RGB").quantize(64).save(out, "PNG", optimize=True)
    return out.getvalue()


def parquet(rows, path, schema=None):
    "As pandas and verl write it: nothing tells that a struct of bytes and path is a picture."
    import pyarrow as pa, pyarrow.parquet as pq
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def lines(rows, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def verl(p, i, solution):
    return dict(data_source="drawn/geometry", prompt=[dict(role="user", content=f"<image>{p.question} Put the final answer in \\boxed{{}}.")],
                images=[dict(bytes=png(p.images[0]), path=None)], ability="math", reward_model=dict(style="rule", ground_truth=p.answer),
                extra_info=dict(split="train", index=i, answer=p.answer, question=f"<image>{p.question}"), solution=solution)


def make(folder):
    "Write every data set below `folder`."
    import datasets as D
    folder, ps = Path(folder), problems()
    pictures = [png(p.images[0]) for p in ps]
    image = [dict(bytes=b, path=None) for b in pictures]

    for i, b in enumerate(pictures):                                          # ViRL39K: paths beside the table, boxed answers
        for place in ("virl39k", "plain"):
            (folder/place/"images").mkdir(parents=True, exist_ok=True)
            (folder/place/"images"/f"{i}.png").write_bytes(b)
    parquet([dict(question="<image>" + p.question, answer=f"\\boxed{{{p.answer}}}", PassRate_32BTrained=.5, PassRate_7BBase=.25, category="(GradeSchool) Geometric", source="drawn",
                  qid=f"drawn-{i}", image=[f"images/{i}.png"]) for i, p in enumerate(ps)], folder/"virl39k/39Krelease.parquet")

    pictured = D.Features(dict(images=D.List(D.Image()), problem=D.Value("string"), answer=D.Value("string")))
    rows = [dict(images=[image[i]], problem="<image>" + p.question, answer=p.answer) for i, p in enumerate(ps)]
    D.Dataset.from_list(rows, features=pictured).to_parquet(folder/"easyr1.parquet")
    more = D.Features(pictured | dict(id=D.Value("int64"), choices=D.List(D.Value("string")), ground_truth=D.Value("string")))
    D.Dataset.from_list([r | dict(id=100 + i, choices=[r["answer"], "1", "2", "3"], ground_truth="A") for i, r in enumerate(rows)], features=more).to_parquet(folder/"geometry3k.parquet")

    parquet([verl(p, i, p.expert) for i, p in enumerate(ps)], folder/"verl_text.parquet")                          # CalibRL's solution in its three forms
    parquet([verl(p, i, [dict(role="assistant", content=p.expert)]) for i, p in enumerate(ps)], folder/"verl_list.parquet")
    parquet([verl(p, i, dict(content=p.expert)) for i, p in enumerate(ps)], folder/"verl_record.parquet")

    parquet([dict(prompt=[dict(role="system", content=[dict(type="text", text="Answer the question.")]), dict(role="user", content=[dict(type="image", text=None), dict(type="text", text=p.question)])],
                  image=image[i], solution=p.expert) for i, p in enumerate(ps)], folder/"trl_messages.parquet")
    lines([dict(prompt=p.question, image=f"images/{i}.png", answer=int(p.answer), solution=f"{p.expert[7:].split('</think>')[0]}, so it is \\boxed{{{p.answer}}}") for i, p in enumerate(ps)], folder/"plain/trl_text.jsonl")

    good = [dict(question=p.question, answer=p.answer, image=f"images/{i}.png", expert=p.expert, level="drawn") for i, p in enumerate(ps)]
    lines(good, folder/"plain/problems.jsonl")
    with open(folder/"mapped.csv", "w", newline="", encoding="utf-8") as f:
        table = csv.writer(f)
        table.writerow(["aufgabe", "ergebnis", "bild", "weg", "stufe"])
        table.writerows([p.question, p.answer, f"plain/images/{i}.png", p.expert, "leicht"] for i, p in enumerate(ps))
    bad = [good[0], good[1] | dict(image="images/none.png"), good[1] | dict(image="broken.png"), good[1] | dict(image="../easyr1.parquet"), good[1] | dict(answer="  "), good[1] | dict(answer=None),
           good[1] | dict(question="<image>Left or right?<image>"), good[1] | dict(question="<|vision_start|> How long?"), good[1] | dict(question=""), good[2] | dict(expert=None),
           good[3] | dict(expert="<think>guess</think><answer>987</answer>"), good[1] | dict(answer="E", options=["1", "2"])]
    lines(bad, folder/"plain/faulty.jsonl")
    with open(folder/"plain/faulty.jsonl", "a") as f: f.write('{"question": "cut in the mid\n')
    (folder/"plain/broken.png").write_bytes(pictures[0][:300])

    hub = folder/"hub"                                                        # the copy of a hub repository with two configurations
    for name, part in (("easy", rows[:3]), ("all", rows)):
        for split, some in (("train", part[1:]), ("test", part[:1])): (hub/name).mkdir(parents=True, exist_ok=True); D.Dataset.from_list(some, features=pictured).to_parquet(hub/name/f"{split}-00000-of-00001.parquet")
    (hub/"README.md").write_text("---\nconfigs:\n" + "".join(f"- config_name: {n}\n  data_files:\n  - split: train\n    path: {n}/train-*\n  - split: test\n    path: {n}/test-*\n" for n in ("all", "easy")) + "---\nDrawn geometry.\n")
    D.Dataset.from_list(rows, features=pictured).save_to_disk(folder/"saved")
    return folder


if __name__ == "__main__":
    import datasets
    datasets.disable_progress_bars()
    to = Path(sys.argv[1]) if len(sys.argv) > 1 else FIXTURES
    if to.exists(): shutil.rmtree(to)
    print(make(to))
