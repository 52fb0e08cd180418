"""Miniature copies of the benchmarks, each in its own schema and file layout, with drawn images and
the awkward rows of the real ones."""
import json
from pathlib import Path

from datasets import Dataset, Features, List, Value
from datasets import Image as Picture
from PIL import Image, ImageDraw

ONE = "00000-of-00001.parquet"      # how the hub ends the name of an only shard
COLORS = ("#4477aa", "#cc6677", "#228833")
BAD = {"geometry3k": [5], "geoqa": [4], "mmmu_val": [5], "math500": [2]}      # unusable rows


def draw(n, mode="RGB", size=(84, 84)):
    "A rectangle whose size depends on n, in any image mode."
    image = Image.new("RGB", size, "white")
    corners = [12, 12, 24 + 9*(n % 6), 24 + 7*(n % 7)]
    ImageDraw.Draw(image).rectangle(corners, fill=COLORS[n % 3], outline="black")
    return image.convert(mode)


def parquet(path, rows, images=(), lists=()):
    "Rows as a parquet file with hub-style image columns."
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = [{name: value for name, value in row.items() if name not in (*images, *lists)}
             for row in rows]
    features = Features({**Dataset.from_list(plain).features,
                         **{name: Picture() for name in images},
                         **{name: List(Picture()) for name in lists}})
    Dataset.from_list(rows, features=features).to_parquet(str(path))


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def geometry3k(root):
    # by letter: two pictures, and a row without choices, which cannot be used
    choices = ["10", "12", r"6 \sqrt { 2 }", "15"]
    rows = [dict(images=[draw(i)], problem="<image>Find x.", choices=choices, ground_truth=letter,
                 problem_type="triangle") for i, letter in enumerate("ABCD")]
    rows += [dict(images=[draw(5), draw(6)],
                  problem="<image><image>Find y. Round to the nearest tenth.",
                  choices=["1.1", "2.2", "3.3", "4.4"], ground_truth="B", problem_type=None),
             dict(images=[draw(7, "L")], problem="Without choices.", choices=[], ground_truth="C",
                  problem_type="circle")]
    parquet(root/f"geometry3k/data/test-{ONE}", rows, lists=["images"])

    # by value
    answers = ["12", r"6 \sqrt { 2 }", "14.0", "x = 3", r"\frac{3}{4}"]
    rows = [dict(images=[draw(i, "RGBA")], problem="<image>Find the area.", answer=answer)
            for i, answer in enumerate(answers)]
    parquet(root/f"hiyouga/geometry3k/data/test-{ONE}", rows, lists=["images"])


def geoqa(root):
    # prompts beside a folder of pictures, of which one is lost
    (root/"geoqa/images").mkdir(parents=True)
    answers = ["145°", "<answer> 50 </answer>", "A. 30°", "2√3"]
    for i in range(len(answers)):
        draw(i).save(root/f"geoqa/images/test_{i}.png")
    rows = [dict(question=f"What is the angle {i}?", ground_truth=answer,
                 image_path=f"./images/test_{i}.png") for i, answer in enumerate(answers)]
    rows.append(dict(question="The picture is lost.", ground_truth="3",
                     image_path="./images/gone.png"))
    jsonl(root/"geoqa/geoqa_test_prompts.jsonl", rows)

    # a table with choices, and one with free answers
    rows = [dict(subject=f"As in the figure, angle A is {i}0 degrees.",
                 choices=["30°", "40°", "50°", "60°"], label=i % 4, answer="because", image=draw(i))
            for i in range(4)]
    parquet(root/"geoQA.parquet", rows, images=["image"])
    rows = [dict(images=[draw(i)], problem="<image>Then the length is?", answer=answer)
            for i, answer in enumerate(["5", "A. 5cm", r"\boxed{7}"])]
    parquet(root/f"geoqa_plus/data/test-{ONE}", rows, lists=["images"])


def geoeval_row(i):
    texts = {"Num_Exp": f"Find the length of side {i}.", "aug_problem": f"How long is side {i}?"}
    return dict(text=texts, choice_list=["10", "12", None, "14"], answer_value="12.0",
                diagram_name=f"{i}.png", diagram_description=None, dataset_name="PGPS9K",
                geometry_shape="Triangle", backward_text=f"The answer is 12; find number {i}.",
                backward_answer_value="3")


def geoeval(root):
    rows = {str(i): geoeval_row(i) for i in range(4)}
    in_words = {"structure": ["line A B"], "semantic": ["AB = 3"]}
    rows["3"] |= dict(diagram_name=None, diagram_description=in_words, choice_list=None,
                      answer_value=3, dataset_name="MATH-Geometry")
    for name in ("geoeval", "geoeval_hard", "geoeval_backward", "geoeval_aug"):
        (root/name/"diagrams").mkdir(parents=True)
        for i in range(3):
            draw(i).save(root/name/f"diagrams/{i}.png")
        (root/name/"problems.json").write_text(json.dumps(rows))


# question, choices, answer, its type, precision and unit
MATHVISTA = [
    ("How many?", None, "14", "integer", None, ""),
    ("What part?", None, "0.6", "float", 1.0, ""),
    ("How much?", None, "1.45", "float", 2.0, "$"),
    ("Between which years?", None, "[2007, 2008]", "list", None, ""),
    ("Which?", ["3/11", "8/11", "6/11"], "8/11", "text", None, None),
    ("Is it larger?", ["yes", "no"], "no", "text", None, None)]


def mathvista(root):
    metadata = dict(category="math-targeted-vqa", context="figure", grade="high school",
                    language="english", skills=["geometry reasoning"], source="x",
                    split="testmini", task="geometry problem solving")
    rows = []
    for i, (question, choices, answer, kind, precision, unit) in enumerate(MATHVISTA):
        rows.append(dict(
            pid=str(i + 1), question=question, image=f"images/{i}.jpg",
            decoded_image=draw(i, ("RGB", "L", "P")[i % 3]), choices=choices, unit=unit,
            precision=precision, answer=answer,
            question_type="multi_choice" if choices else "free_form", answer_type=kind,
            metadata=metadata, query=f"Question: {question}"))
    parquet(root/f"mathvista_testmini/data/testmini-{ONE}", rows, images=["decoded_image"])


def mathverse(root):
    question = "How big is it?\nChoices:\nA:30°\nB:45°\nC:60°\nD:75°"
    versions = ["Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only"]
    metadata = dict(split="testmini", source="GeoQA", subject="Plane Geometry", subfield="Angle")
    direct = "According to the question shown in the image, please directly answer it."
    rows = [dict(sample_index=str(i + 1), problem_index="1", problem_version=version,
                 question="" if version == "Vision Only" else question, image=draw(i), answer="B",
                 question_type="multi-choice", metadata=metadata, query_wo=direct,
                 query_cot="Reason.", question_for_eval=question)
            for i, version in enumerate(versions)]
    rows.append(rows[0] | dict(sample_index="6", problem_index="2", question="What is the volume?",
                               answer="12π", question_type="free-form"))
    parquet(root/"AI4Math/MathVerse/testmini.parquet", rows, images=["image"])


# id, question, options, answer, level and subject
MATHVISION = [
    ("4", "Which piece is missing?", ["A", "B", "C", "D", "E"], "B", 2, "combinatorics"),
    ("8", "What is the area?", [], r"\sqrt{2}", 5, "metric geometry - area"),
    ("9", "How long?", ["$1$", "$2$", "$3$", "$4$", "$5$"], "E", 1, "metric geometry - length")]


def mathvision(root):
    rows = [dict(id=name, question=f"{question}\n<image1>", options=options,
                 image=f"images/{name}.jpg", decoded_image=draw(i), answer=answer, solution=None,
                 level=level, subject=subject)
            for i, (name, question, options, answer, level, subject) in enumerate(MATHVISION, 1)]
    for split, part in (("test", rows), ("testmini", rows[:2])):
        parquet(root/f"MathVision/data/{split}-{ONE}", part, images=["decoded_image"])


SLOTS = [f"image_{i}" for i in range(1, 8)]


def mmmu_row(name, **more):
    row = dict.fromkeys(SLOTS)
    row |= dict(id=name, question="<image 1> Which one?", options="['one', \"it's two\", 'three']",
                explanation="", answer="B", question_type="multiple-choice",
                topic_difficulty="Easy", img_type="['Diagrams']", image_1=draw(1))
    return row | more


def mmmu(root):
    rows = [
        mmmu_row("validation_Art_Theory_1"),
        mmmu_row("validation_Math_2", question="Compare <image 1> and <image 2>.",
                 image_2=draw(2, "P")),
        mmmu_row("validation_Math_3", question="Which picture follows <image 1>?",
                 options="['<image 2>', '<image 3>']", image_2=draw(3), image_3=draw(4),
                 answer="A"),
        mmmu_row("validation_Electronics_4", question="<image 1> Find the current.", options="[]",
                 question_type="open", answer="['24/7', '3.429']"),
        mmmu_row("validation_Music_5", options="[]", question_type="open", answer="baroque"),
        mmmu_row("validation_Math_6", options="not a list")]
    parquet(root/f"mmmu_val/data/validation-{ONE}", rows, images=SLOTS)

    # MMMU-Pro: ten choices, as text and within the picture
    ten = str([f"{n} m" for n in range(1, 11)])
    rows = [mmmu_row(f"test_Math_{i}", options=ten, answer=letter, subject="Math")
            for i, letter in enumerate("AJ")]
    for row in rows:
        del row["question_type"]
    parquet(root/f"MMMU_Pro/standard (10 options)/test-{ONE}", rows, images=SLOTS)
    rows = [dict(id=f"test_Math_{i}", image=draw(i), options=ten, answer=letter, subject="Math")
            for i, letter in enumerate("CH")]
    parquet(root/f"MMMU_Pro/vision/test-{ONE}", rows, images=["image"])


# ID, key and options
WEMATH = [
    ("a", "2steps_1", "A. 5; B. 6; C. 7; D. No correct answer"),
    ("a", "2steps_2", "A. 30; B. 6.5; C. No correct answer"),
    ("a", "2steps_multi", "A. x; B. y; C. z"),
    ("b", "3steps_1", "see the image")]


def wemath(root):
    rows = []
    for i, (name, key, options) in enumerate(WEMATH):
        question = "What is it? <image 1>" if key == "2steps_1" else "What is it?"
        rows.append({
            "ID": name, "split": "testmini", "knowledge concept": "Area", "question": question,
            "option": options, "answer": "B", "image_path": draw(i), "key": key,
            "question number": i, "knowledge concept description": ""})
    parquet(root/f"We-Math__We-Math/data/testmini-{ONE}", rows, images=["image_path"])


def dynamath(root):
    for variant in range(1, 11):
        asked = [(f"What is {variant}/3?", f"{variant/3:.3f}", "float"),
                 ("Which? choice: (A) 1 (B) 2 (C) 3", "ABC"[variant % 3], "multiple choice")]
        rows = [dict(id=str(i), question=question, image=f"images/{i}.png",
                     decoded_image=draw(i + variant), ground_truth=answer, answer_type=kind,
                     subject="plane geometry", knowledge_level="high school")
                for i, (question, answer, kind) in enumerate(asked)]
        parquet(root/f"dynamath/data/sample_variant{variant}-{ONE}", rows,
                images=["decoded_image"])


def logicvista(root):
    skills = [("A", "inductive"), ("A, C", "deductive"), ("b", "spatial")]
    rows = [dict(image=draw(i), question="Select the pieces, from A to E.", answer=answer,
                 skill=[skill], broad_capability=["diagram"])
            for i, (answer, skill) in enumerate(skills)]
    features = Features(dict(image=Picture(), question=Value("string"), answer=Value("string"),
                             skill=List(Value("string")), broad_capability=List(Value("string"))))
    Dataset.from_list(rows, features=features).save_to_disk(str(root/"logicvista"))


# problem, answer, subject, level and name
MATH500 = [
    ("Convert $(0,3)$ to polar coordinates.", r"\left( 3, \frac{\pi}{2} \right)", "Precalculus", 2,
     "test/precalculus/807.json"),
    ("Solve $x^2 \\le 4$.", "[-2,2]", "Algebra", 3, "test/algebra/1.json"),
    ("No answer.", "", "Algebra", 1, "test/algebra/2.json")]


def maths(root):
    "Sets without pictures."
    rows = [dict(problem=problem, solution="...", answer=answer, subject=subject, level=level,
                 unique_id=name) for problem, answer, subject, level, name in MATH500]
    jsonl(root/"MATH-500/test.jsonl", rows)
    jsonl(root/"amc23.jsonl", [dict(id=0, question="How many miles?", answer=27.0, url="u"),
                               dict(id=1, question="How many?", answer=36.0, url="u")])


def make(root):
    "Write every miniature below a folder; returns it."
    root = Path(root)
    for write in (geometry3k, geoqa, geoeval, mathvista, mathverse, mathvision, mmmu, wemath,
                  dynamath, logicvista, maths):
        write(root)
    return root
