"""Miniature copies of the benchmarks, each in its own schema and file layout, with drawn images and the awkward rows of the real ones."""
import json
from pathlib import Path

from PIL import Image, ImageDraw


def draw(n, mode="RGB", size=(84, 84)):
    "A rectangle whose size depends on n, in any image mode."
    im = Image.new("RGB", size, "white")
    ImageDraw.Draw(im).rectangle([12, 12, 24 + 9*(n % 6), 24 + 7*(n % 7)], fill=("#4477aa", "#cc6677", "#228833")[n % 3], outline="black")
    return im.convert(mode)


def parquet(path, rows, images=(), lists=()):
    "Rows as a parquet file with hub-style image columns."
    from datasets import Dataset, Features, Image as Picture, List
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = Dataset.from_list([{k: v for k, v in r.items() if k not in (*images, *lists)} for r in rows])
    features = Features({**plain.features, **{k: Picture() for k in images}, **{k: List(Picture()) for k in lists}})
    Dataset.from_list(rows, features=features).to_parquet(str(path))


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def geometry3k(root):
    rows = [dict(images=[draw(i)], problem="<image>Find x.", choices=["10", "12", r"6 \sqrt { 2 }", "15"], ground_truth="ABCD"[i], problem_type="triangle") for i in range(4)]
    rows += [dict(images=[draw(5), draw(6)], problem="<image><image>Find y. Round to the nearest tenth.", choices=["1.1", "2.2", "3.3", "4.4"], ground_truth="B", problem_type=None),
             dict(images=[draw(7, "L")], problem="Without choices.", choices=[], ground_truth="C", problem_type="circle")]             # unusable by letter
    parquet(root/"geometry3k/data/test-00000-of-00001.parquet", rows, lists=["images"])
    rows = [dict(images=[draw(i, "RGBA")], problem="<image>Find the area.", answer=a) for i, a in enumerate(["12", r"6 \sqrt { 2 }", "14.0", "x = 3", r"\frac{3}{4}"])]
    parquet(root/"hiyouga/geometry3k/data/test-00000-of-00001.parquet", rows, lists=["images"])


def geoqa(root):
    (root/"geoqa/images").mkdir(parents=True)
    for i in range(4): draw(i).save(root/f"geoqa/images/test_{i}.png")
    jsonl(root/"geoqa/geoqa_test_prompts.jsonl", [dict(question=f"What is the angle {i}?", ground_truth=a, image_path=f"./images/test_{i}.png") for i, a in enumerate(["145°", "<answer> 50 </answer>", "A. 30°", "2√3"])]
          + [dict(question="The picture is lost.", ground_truth="3", image_path="./images/gone.png")])
    rows = [dict(subject=f"As in the figure, angle A is {i}0 degrees.", choices=["30°", "40°", "50°", "60°"], label=i % 4, answer="because", image=draw(i)) for i in range(4)]
    parquet(root/"geoQA.parquet", rows, images=["image"])
    parquet(root/"geoqa_plus/data/test-00000-of-00001.parquet", [dict(images=[draw(i)], problem="<image>Then the length is?", answer=a) for i, a in enumerate(["5", "A. 5cm", r"\boxed{7}"])], lists=["images"])


def geoeval(root):
    one = lambda i, **kw: dict(text={"Num_Exp": f"Find the length of side {i}.", "aug_problem": f"How long is side {i}?"}, choice_list=["10", "12", None, "14"], answer_value="12.0", diagram_name=f"{i}.png", diagram_description=None,
                               dataset_name="PGPS9K", geometry_shape="Triangle", backward_text=f"The answer is 12; find number {i}.", backward_answer_value="3", **kw)
    rows = {str(i): one(i) for i in range(3)}
    rows["3"] = {**one(3), "diagram_name": None, "diagram_description": {"structure": ["line A B"], "semantic": ["AB = 3"]}, "choice_list": None, "answer_value": 3, "dataset_name": "MATH-Geometry"}
    for name in ("geoeval", "geoeval_hard", "geoeval_backward", "geoeval_aug"):
        (root/name/"diagrams").mkdir(parents=True)
        for i in range(3): draw(i).save(root/name/f"diagrams/{i}.png")
        (root/name/"problems.json").write_text(json.dumps(rows))


def mathvista(root):
    kinds = [("How many?", None, "14", "integer", None, ""), ("What part?", None, "0.6", "float", 1.0, ""), ("How much?", None, "1.45", "float", 2.0, "$"), ("Between which years?", None, "[2007, 2008]", "list", None, ""),
             ("Which?", ["3/11", "8/11", "6/11"], "8/11", "text", None, None), ("Is it larger?", ["yes", "no"], "no", "text", None, None)]
    rows = [dict(pid=str(i + 1), question=q, image=f"images/{i}.jpg", decoded_image=draw(i, ("RGB", "L", "P")[i % 3]), choices=c, unit=u, precision=pr, answer=a, question_type="multi_choice" if c else "free_form", answer_type=t,
                 metadata=dict(category="math-targeted-vqa", context="figure", grade="high school", language="english", skills=["geometry reasoning"], source="x", split="testmini", task="geometry problem solving"), query=f"Question: {q}")
            for i, (q, c, a, t, pr, u) in enumerate(kinds)]
    parquet(root/"mathvista_testmini/data/testmini-00000-of-00001.parquet", rows, images=["decoded_image"])


def mathverse(root):
    ask = "How big is it?\nChoices:\nA:30°\nB:45°\nC:60°\nD:75°"
    rows = [dict(sample_index=str(i + 1), problem_index="1", problem_version=v, question="" if v == "Vision Only" else ask, image=draw(i), answer="B", question_type="multi-choice",
                 metadata=dict(split="testmini", source="GeoQA", subject="Plane Geometry", subfield="Angle"), query_wo="" if i == 9 else "According to the question shown in the image, please directly answer it.", query_cot="Reason.", question_for_eval=ask)
            for i, v in enumerate(["Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only"])]
    rows.append(rows[0] | dict(sample_index="6", problem_index="2", question="What is the volume?", answer="12π", question_type="free-form"))
    parquet(root/"AI4Math/MathVerse/testmini.parquet", rows, images=["image"])


def mathvision(root):
    rows = [dict(id="4", question="Which piece is missing?\n<image1>", options=["A", "B", "C", "D", "E"], image="images/4.jpg", decoded_image=draw(1), answer="B", solution=None, level=2, subject="combinatorics"),
            dict(id="8", question="What is the area?\n<image1>", options=[], image="images/8.jpg", decoded_image=draw(2), answer=r"\sqrt{2}", solution=None, level=5, subject="metric geometry - area"),
            dict(id="9", question="How long?\n<image1>", options=["$1$", "$2$", "$3$", "$4$", "$5$"], image="images/9.jpg", decoded_image=draw(3), answer="E", solution=None, level=1, subject="metric geometry - length")]
    for split, part in (("test", rows), ("testmini", rows[:2])): parquet(root/f"MathVision/data/{split}-00000-of-00001.parquet", part, images=["decoded_image"])


def mmmu(root):
    pictures = [f"image_{i}" for i in range(1, 8)]
    row = lambda id, **kw: {**dict.fromkeys(pictures), **dict(id=id, question="<image 1> Which one?", options="['one', \"it's two\", 'three']", explanation="", answer="B", question_type="multiple-choice", topic_difficulty="Easy", img_type="['Diagrams']", image_1=draw(1))} | kw
    rows = [row("validation_Art_Theory_1"), row("validation_Math_2", question="Compare <image 1> and <image 2>.", image_2=draw(2, "P")),
            row("validation_Math_3", question="Which picture follows <image 1>?", options="['<image 2>', '<image 3>']", image_2=draw(3), image_3=draw(4), answer="A"),
            row("validation_Electronics_4", question="<image 1> Find the current.", options="[]", question_type="open", answer="['24/7', '3.429']"), row("validation_Music_5", options="[]", question_type="open", answer="baroque"),
            row("validation_Math_6", options="not a list")]
    parquet(root/"mmmu_val/data/validation-00000-of-00001.parquet", rows, images=pictures)
    ten = str([f"{n} m" for n in range(1, 11)])
    rows = [row(f"test_Math_{i}", options=ten, answer=a, subject="Math") for i, a in enumerate("AJ")]
    parquet(root/"MMMU_Pro/standard (10 options)/test-00000-of-00001.parquet", [{k: v for k, v in r.items() if k != "question_type"} for r in rows], images=pictures)
    parquet(root/"MMMU_Pro/vision/test-00000-of-00001.parquet", [dict(id=f"test_Math_{i}", image=draw(i), options=ten, answer=a, subject="Math") for i, a in enumerate("CH")], images=["image"])


def wemath(root):
    rows = [{"ID": id, "split": "testmini", "knowledge concept": "Area", "question": "What is it? <image 1>" if k == "2steps_1" else "What is it?", "option": o, "answer": "B", "image_path": draw(i), "key": k, "question number": i, "knowledge concept description": ""}
            for i, (id, k, o) in enumerate([("a", "2steps_1", "A. 5; B. 6; C. 7; D. No correct answer"), ("a", "2steps_2", "A. 30; B. 6.5; C. No correct answer"), ("a", "2steps_multi", "A. x; B. y; C. z"), ("b", "3steps_1", "see the image")])]
    parquet(root/"We-Math__We-Math/data/testmini-00000-of-00001.parquet", rows, images=["image_path"])


def dynamath(root):
    for v in range(1, 11):
        rows = [dict(id=str(i), question=q, image=f"images/{i}.png", decoded_image=draw(i + v), ground_truth=a, answer_type=t, subject="plane geometry", knowledge_level="high school")
                for i, (q, a, t) in enumerate([(f"What is {v}/3?", f"{v/3:.3f}", "float"), ("Which? choice: (A) 1 (B) 2 (C) 3", "ABC"[v % 3], "multiple choice")])]
        parquet(root/f"dynamath/data/sample_variant{v}-00000-of-00001.parquet", rows, images=["decoded_image"])


def logicvista(root):
    from datasets import Dataset, Features, Image as Picture, List, Value
    rows = [dict(image=draw(i), question="Select the pieces, from A to E.", answer=a, skill=[s], broad_capability=["diagram"]) for i, (a, s) in enumerate([("A", "inductive"), ("A, C", "deductive"), ("b", "spatial")])]
    features = Features(dict(image=Picture(), question=Value("string"), answer=Value("string"), skill=List(Value("string")), broad_capability=List(Value("string"))))
    Dataset.from_list(rows, features=features).save_to_disk(str(root/"logicvista"))


def maths(root):
    jsonl(root/"MATH-500/test.jsonl", [dict(problem="Convert $(0,3)$ to polar coordinates.", solution="...", answer=r"\left( 3, \frac{\pi}{2} \right)", subject="Precalculus", level=2, unique_id="test/precalculus/807.json"),
                                       dict(problem="Solve $x^2 \\le 4$.", solution="...", answer="[-2,2]", subject="Algebra", level=3, unique_id="test/algebra/1.json"), dict(problem="No answer.", solution="...", answer="", subject="Algebra", level=1, unique_id="test/algebra/2.json")])
    jsonl(root/"amc23.jsonl", [dict(id=0, question="How many miles?", answer=27.0, url="u"), dict(id=1, question="How many?", answer=36.0, url="u")])


BAD = {"geometry3k": [5], "geoqa": [4], "mmmu_val": [5], "math500": [2]}      # rows that cannot be used, by benchmark


def make(root):
    "Write every miniature below a folder; returns it."
    root = Path(root)
    for f in (geometry3k, geoqa, geoeval, mathvista, mathverse, mathvision, mmmu, wemath, dynamath, logicvista, maths): f(root)
    return root
