"""Files that are not whole, not ours, not for here, or not meant well."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import export

from tests.package.packages import compiled, forge, package
from torchsmith.errors import EngineMismatch, PackageError, TorchsmithError
from torchsmith.package import load, save
from torchsmith.package.archive import ENTRIES, read_archive
from torchsmith.package.plans import plan_from_json, plan_to_json
from torchsmith.runtime.compiled import CompiledModule


def refused(path: Path, sentence: str, error: type[Exception] = PackageError) -> None:
    with pytest.raises(error, match=f"^{re.escape(str(path))}: .*{sentence}") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "m.pt2", "there is no such file")
    refused(tmp_path, "cannot be opened")


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (b"", "the file is empty"),
        (pickle.dumps({"a": 1}), "this is a pickle, which torchsmith never reads"),
        (b"hello, I am no zip", "this is no package of torchsmith's"),
        (b"PK\x03\x04 and no more", "the end of the file is missing"),
        (b"PK\x03\x04" + b"x" * 40 + b"PK\x05\x06" + b"\xff" * 18, "its table of contents has been altered or damaged"),
    ],
)
def test_no_package(tmp_path: Path, contents: bytes, sentence: str) -> None:
    (tmp_path / "m.pt2").write_bytes(contents)
    refused(tmp_path / "m.pt2", sentence)


def test_foreign(tmp_path: Path) -> None:
    torch.export.save(export(nn.ReLU(), (torch.ones(2),)), tmp_path / "program.pt2")
    refused(tmp_path / "program.pt2", "an exported program that torchsmith did not write; open it with torch.export.load")
    torch.jit.save(torch.jit.trace(nn.ReLU(), torch.ones(2)), str(tmp_path / "script.pt"))
    refused(tmp_path / "script.pt", "this is a TorchScript file; open it with torch.jit.load")
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights.pt")
    refused(tmp_path / "weights.pt", "this is a torch.save file")
    with zipfile.ZipFile(tmp_path / "any.zip", "w") as archive:
        archive.writestr("a/b", "c")
    refused(tmp_path / "any.zip", "a zip file that is no package of torchsmith's")


def test_cut_off(tmp_path: Path) -> None:
    whole = package(tmp_path / "m.pt2").read_bytes()
    for size in (len(whole) // 2, len(whole) - 1, 30):
        (tmp_path / "cut.pt2").write_bytes(whole[:size])
        refused(tmp_path / "cut.pt2", "the end of the file is missing; it was cut off or not copied whole; copy it again")
    (tmp_path / "longer.pt2").write_bytes(whole + b"more")
    refused(tmp_path / "longer.pt2", "the end of the file is missing")


def test_altered_anywhere(tmp_path: Path) -> None:
    """One byte changed: the file is refused, or the byte was one that says nothing."""
    path = package(tmp_path / "m.pt2")
    whole, wanted, x = path.read_bytes(), load(path)(torch.ones(2, 4)), torch.ones(2, 4)
    sentences = set()
    for place in random.Random(0).sample(range(len(whole)), 400):
        changed = bytearray(whole)
        changed[place] ^= 0x41
        path.write_bytes(changed)
        try:
            torch.testing.assert_close(load(path)(x), wanted, rtol=0, atol=0)
        except TorchsmithError as error:
            sentences.add(re.sub(r"'[^']*'", "…", str(error)))
    assert any("has been altered or damaged; copy the file again" in sentence for sentence in sentences)


def test_altered_entries(tmp_path: Path) -> None:
    path = package(tmp_path / "m.pt2")
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    for info in infos:
        if info.file_size:
            changed = bytearray(whole)
            begin = whole.index(archive_bytes(whole, info), info.header_offset)
            changed[begin + info.file_size // 2] ^= 1
            path.write_bytes(changed)
            refused(path, "has been altered or damaged")


def archive_bytes(whole: bytes, info: zipfile.ZipInfo) -> bytes:
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        return archive.read(info)


def test_entries_added_and_taken_away(tmp_path: Path) -> None:
    path = package(tmp_path / "m.pt2")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/weights/weight_99", b"new")
    refused(path, "the entry 'data/weights/weight_99' was added or removed")
    path = package(tmp_path / "m.pt2")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("archive/models/model.json", b"{}")
    refused(path, "has two entries of one name")


def header(**changes: Any) -> Any:
    return lambda entries, header: header.update(changes)


def test_newer(tmp_path: Path) -> None:
    path = forge(package(tmp_path / "m.pt2"), header(format=2, torchsmith="9.0", plan=None))
    refused(path, "written by torchsmith '9.0' in format 2, and this torchsmith reads formats up to 1; upgrade torchsmith")


def test_for_another_machine(tmp_path: Path) -> None:
    path = package(tmp_path / "m.pt2")

    def other(entries: dict[str, bytes], header: dict[str, Any]) -> None:
        header["target"].update(arch="sparc64", chip="Niagara")

    forge(path, other)
    refused(path, r"built for cpu sparc64 \(Niagara\), and this machine has cpu", EngineMismatch)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_for_a_gpu_where_there_is_none(tmp_path: Path) -> None:
    def gpu(entries: dict[str, bytes], header: dict[str, Any]) -> None:
        header["target"] = {"device": "cuda", "arch": "sm_90", "features": [], "chip": "H100"}
        text = json.dumps(header["plan"]).replace('"device": "cpu"', '"device": "cuda:0"')
        header["plan"] = json.loads(text)

    path = forge(package(tmp_path / "m.pt2"), gpu)
    module = load(path)
    sentence = r"built for cuda sm_90 \(H100\), and this machine has no such device; .* load it on a machine that has one"
    with pytest.raises(EngineMismatch, match=sentence):
        module(torch.ones(2, 4))


# From here on, files whose checksums are right and whose author is not a friend.

RAN = Path(tempfile.gettempdir()) / "torchsmith-test-this-must-not-exist"


class Bomb:
    def __reduce__(self) -> Any:
        return RAN.touch, ()


@pytest.fixture(autouse=True)
def nothing_runs() -> Any:
    RAN.unlink(missing_ok=True)
    yield
    assert not RAN.exists(), "code of the file ran"


def bombs() -> list[bytes]:
    zipped = io.BytesIO()
    torch.save(Bomb(), zipped)
    return [pickle.dumps(Bomb()), zipped.getvalue()]


def entry_names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [name.split("/", 1)[1] for name in archive.namelist() if not name.endswith("torchsmith.json")]


def test_the_bombs_are_live() -> None:
    torch.load(io.BytesIO(bombs()[1]), weights_only=False)
    assert RAN.exists()
    RAN.unlink()


@pytest.mark.parametrize("bomb", [0, 1])
def test_a_pickle_in_any_entry_is_not_run(tmp_path: Path, bomb: int) -> None:
    path = package(tmp_path / "m.pt2")
    more = ["data/weights/model.pt", "data/constants/model.pt", "data/constants/custom_obj_0", "data/constants/opaque_obj_0"]
    more += [
        "serialized_state_dict.pt",
        "data/aotinductor/model/x.so",
        "models/other.json",
        "data/sample_inputs/other.pt",
        "extra/other",
    ]
    for name in [*entry_names(path), *more]:
        package(path)
        forge(path, lambda entries, header, name=name: entries.update({name: bombs()[bomb]}))
        try:
            module = load(path)
            _ = module(torch.ones(2, 4)), module.program
        except (TorchsmithError, ValueError, RuntimeError):  # of torch, where its own version entries make no sense
            pass
        assert not RAN.exists(), name
        if not ENTRIES.fullmatch(name):
            refused(path, f"has the entry '{name}', which torchsmith never writes")


@pytest.mark.parametrize(
    ("entry", "field"),
    [("data/weights/model_weights_config.json", "use_pickle"), ("data/constants/model_constants_config.json", "use_pickle")],
)
def test_a_tensor_that_says_it_is_a_pickle(tmp_path: Path, entry: str, field: str) -> None:
    def plant(entries: dict[str, bytes], header: dict[str, Any]) -> None:
        config = json.loads(entries[entry])
        first = next(iter(config["config"].values()))
        first[field] = True
        entries[entry] = json.dumps(config).encode()
        entries[f"{entry.rsplit('/', 1)[0]}/{first['path_name']}"] = bombs()[1]

    refused(forge(package(tmp_path / "m.pt2"), plant), "has pickled data, which torchsmith never reads")


def test_a_payload_of_another_kind(tmp_path: Path) -> None:
    def plant(entries: dict[str, bytes], header: dict[str, Any]) -> None:
        name = "data/constants/model_constants_config.json"
        entries[name] = entries[name].replace(b"tensor_0", b"opaque_obj_0")

    refused(forge(package(tmp_path / "m.pt2"), plant), "has pickled data")


def first_call(plan: dict[str, Any]) -> dict[str, Any]:
    call: dict[str, Any] = next(step for step in plan["body"]["steps"] if "op" in step)
    return call


EVIL = f"__import__('pathlib').Path({str(RAN)!r}).touch()"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p: first_call(p).update(op="os::system.default"), "which no package may|custom op that is not registered"),
        (lambda p: first_call(p).update(op="torch.os.system"), "calls 'torch.os.system', which no package may"),
        (lambda p: first_call(p).update(op="aten::from_file.default"), "which no package may"),
        (lambda p: first_call(p).update(op="load_library::__func__.__call__"), "which no package may|not registered"),
        (
            lambda p: first_call(p).update(op="aten::nothing_like_it.default"),
            "which torch .* does not have; load it with the torch that saved it",
        ),
        (lambda p: first_call(p).update(op="aten::add.__init__"), "does not have"),
        (lambda p: first_call(p).update(kwargs={f"a={EVIL}": 1}), "is no name"),
        (lambda p: first_call(p).update(out=f"1 = {EVIL} #"), "is no number of a value"),
        (lambda p: first_call(p).update(args=[{"ref": EVIL}]), "is no number of a value"),
        (lambda p: first_call(p).update(args=[{"dtype": "load"}]), "is no dtype"),
        (lambda p: first_call(p).update(args=[{"layout": "load"}]), "cannot be read"),
        (lambda p: first_call(p).update(args=[{"unknown": 1}]), "cannot be read"),
        (lambda p: p["inputs"][0].update(shape=[EVIL, 4]), "is no size"),
        (lambda p: p["inputs"][0].update(dtype="hub"), "is no dtype"),
        (lambda p: p["symbols"].update({EVIL: [1, 2]}), "is no size"),
        (lambda p: p.update(relations=[[EVIL, "1"]]), "is no size"),
        (lambda p: p["parameters"][0].__setitem__(0, EVIL), "is no name"),
        (lambda p: p["parameters"][0].__setitem__(1, "__class__"), "is no kind of parameter"),
        (lambda p: p.update(nested_output=["os.path", None, []]), "the class 'os.path', which is not registered in this process"),
        (
            lambda p: p.update(nested_output=["torch._higher_order_ops.flat_apply._ConstantFunction", None, []]),
            "is no name of a class",
        ),
        (lambda p: p.update(nested_output=["collections.defaultdict", ["os.system", []], []]), "torchsmith makes none from a file"),
        (lambda p: p.update(nested_output=["transformers.os.system", None, []]), "which is not registered"),
        (lambda p: p.update(nested_output=7), "cannot be read"),
        (lambda p: p.pop("body"), "cannot be read"),
        (lambda p: p["tensors"].update({"nobody": 99}), "its tensors cannot be read"),
    ],
)
def test_plans_that_try_something(tmp_path: Path, change: Any, sentence: str) -> None:
    refused(forge(package(tmp_path / "m.pt2"), lambda entries, header: change(header["plan"]) and None), sentence)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.update(shape=[10**6, 10**6]), "its tensors cannot be read"),
        (lambda t: t.update(offset=10**9), "its tensors cannot be read"),
        (lambda t: t.update(stride=[-1]), "its tensors cannot be read"),
        (lambda t: t.update(dtype="float64x"), "is no dtype"),
        (lambda t: t.update(entry="../../etc/passwd"), "its tensors cannot be read"),
        (lambda t: t.update(device="nowhere"), "its tensors cannot be read"),
    ],
)
def test_tensors_that_reach_out(tmp_path: Path, change: Any, sentence: str) -> None:
    refused(forge(package(tmp_path / "m.pt2"), lambda entries, header: change(header["tensors"]["scale"])), sentence)


def test_an_engine_in_another_ones_place(tmp_path: Path) -> None:
    def swap(entries: dict[str, bytes], header: dict[str, Any]) -> None:
        name = header["tensors"]["engine_0"]["entry"]
        entries[name] = entries[name].replace(b"aten.relu", b"aten.sinh")

    refused(forge(package(tmp_path / "m.pt2"), swap), "the engine 'engine_0' is not the one that its spec names")


ODD = (None, -1, 10**30, True, "x", "", "1e9", [], [1], {}, {"ref": 0}, {"ref": 10**6}, 0.5)


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every container in the data with each of its keys."""
    if not isinstance(data, (dict, list)):
        return []
    own = [(data, key) for key in (data if isinstance(data, dict) else range(len(data)))]
    return own + [place for container, key in own for place in places(container[key])]


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_any_odd_value_in_a_plan_is_refused_or_harmless(tmp_path: Path) -> None:
    path = package(tmp_path / "m.pt2")
    header, tensors = read_archive(str(path)).header, load(path).tensors | engine(path)
    draw = random.Random(0)
    for _ in range(1000):
        plan = copy.deepcopy(header["plan"])
        container, key = draw.choice(places(plan))
        container[key] = draw.choice(ODD)
        try:
            plan = plan_from_json(plan)
            if {*plan.tensors, *(call.constant for call in plan.engine_calls)} <= tensors.keys():  # which load asks for
                CompiledModule.from_plan(plan, tensors, {}, lambda: None)  # type: ignore[arg-type, return-value]
        except TorchsmithError:
            pass


def engine(path: Path) -> dict[str, torch.Tensor]:
    archive = read_archive(str(path))
    return {"engine_0": archive.entries[archive.header["tensors"]["engine_0"]["entry"]]}


def in_program(change: Any) -> Any:
    def edit(entries: dict[str, bytes], header: dict[str, Any]) -> None:
        model = json.loads(entries["models/model.json"])
        change(model)
        entries["models/model.json"] = json.dumps(model).encode()

    return edit


def graph(model: Any) -> Any:
    return model["graph_module"]["graph"]


def sizes(model: Any, text: str) -> None:
    graph(model)["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = text


ENUM = json.dumps(
    [
        1,
        {
            "type": "builtins.dict",
            "context": json.dumps([{"__enum__": True, "fqn": "antigravity:X", "name": "a"}]),
            "children_spec": [],
        },
    ]
)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: sizes(m, EVIL),
        lambda m: sizes(m, "exec"),
        lambda m: sizes(m, f'Symbol("{EVIL.replace(chr(34), "")}")'),
        lambda m: sizes(m, "Integer.__class__"),
        lambda m: sizes(m, "Lambda(x, 1)"),
        lambda m: graph(m)["nodes"][0].update(target="torch.os.system"),
        lambda m: graph(m)["nodes"][0].update(target="torch.ops.aten.from_file.default"),
        lambda m: graph(m)["nodes"][0].update(name=f"a = {EVIL}\n"),
        lambda m: graph(m)["inputs"][-2]["as_tensor"].update(name=f"x={EVIL}"),
        lambda m: graph(m)["tensor_values"].update({f"x={EVIL}": graph(m)["tensor_values"]["x"]}),
        lambda m: m["graph_module"]["module_call_graph"][0]["signature"].update(forward_arg_names=[f"x={EVIL}"]),
        lambda m: m["graph_module"]["module_call_graph"][0]["signature"].update(in_spec=ENUM),
        lambda m: m["graph_module"]["module_call_graph"][0]["signature"].update(
            out_spec='[1, {"type": "os.X", "context": "null", "children_spec": []}]'
        ),
        lambda m: m["graph_module"]["signature"]["input_specs"][0].update({f"x={EVIL}": {}}),
        lambda m: m.update(verifiers=[EVIL]),
        lambda m: m.update(graph_module=[EVIL]),
    ],
)
def test_programs_that_try_something(tmp_path: Path, change: Any) -> None:
    path = forge(package(tmp_path / "m.pt2"), in_program(change))
    module = load(path)  # the program is not even read
    module(torch.ones(2, 4))
    with pytest.raises(PackageError):
        _ = module.program


def test_what_only_serves_debugging_is_left_out(tmp_path: Path) -> None:
    def plant(model: Any) -> None:
        model["guards_code"] = [EVIL, f"L['x'].size()[0] == {EVIL}"]
        graph(model)["nodes"][0]["metadata"] = {
            "stack_trace": f"\n{EVIL}\n",
            "source_fn_stack": "a,torch.hub.load",
            "from_node": EVIL,
        }

    module = load(forge(package(tmp_path / "m.pt2"), in_program(plant)))
    x = torch.randn(2, 4)
    torch.testing.assert_close(module.program.module()(x, flag=True), module(x))


def test_plans_survive_their_text() -> None:
    plan = compiled()[1].plan
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan


def test_reading_an_archive_changes_nothing(tmp_path: Path) -> None:
    path = package(tmp_path / "m.pt2")
    before = path.read_bytes()
    archive = read_archive(str(path))
    archive.entries["models/model.json"].zero_()
    assert path.read_bytes() == before
    save(load(path), tmp_path / "again.pt2")
