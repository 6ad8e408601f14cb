"""A short program for each runtime, with an export's names, sizes and types filled in.

The frames lie in `templates/`; what depends on the inputs and outputs is made here.
"""

import json
import math
import re
import string
from collections.abc import Mapping
from pathlib import Path

from tiffin.export.metadata import LABELS_FILE
from tiffin.export.proposals import PROPOSALS

_TEMPLATES = Path(__file__).parent / "templates"
NAMES = tuple(sorted(path.stem for path in _TEMPLATES.glob("*.in")))
# The types of a tensor's elements in C++, Kotlin (type of an array, method suffix) and Swift.
_TYPES = {
    "float32": ("float", "FloatArray", "Float", "Float32"),
    "uint8": ("uint8_t", "ByteArray", "Int8", "UInt8"),
    "int8": ("int8_t", "ByteArray", "Int8", "Int8"),
    "int32": ("int32_t", "IntArray", "Int", "Int32"),
    "int64": ("int64_t", "LongArray", "Long", "Int64"),
}


def texts(manifest: Mapping) -> dict[str, str]:
    """Return the text of each sample by file name: those of `NAMES` that files and types allow.

    Args:
        manifest: the manifest, format_version 1.
    """
    if "parts" in manifest:
        return _of_pair(manifest)
    onnx, tflite = _pick(manifest, "onnx", "fp32"), _pick(manifest, "tflite", "int8")
    inputs, outputs = manifest["inputs"], manifest["outputs"]
    typed = all(t["dtype"] in _TYPES for t in [*inputs, *outputs])
    images = [t for t in inputs if _is_image(t)]
    samples = {}
    if onnx:
        samples["python_onnxruntime.py"] = _python(manifest, onnx, "python_onnxruntime.py")
    if onnx and typed:
        samples["onnxruntime.cc"] = _cpp(manifest, onnx)
    if tflite:
        samples["python_litert.py"] = _python(manifest, tflite, "python_litert.py")
    if tflite and typed:
        samples["android_litert.kt"] = _kotlin(manifest, tflite)
        samples["ios_litert.swift"] = _swift(manifest, tflite)
    if tflite and manifest["task"] == "classification" and len(images) == len(inputs) == 1:
        samples["android_mediapipe.kt"] = _fill("android_mediapipe.kt", file=tflite)
    return samples


def _of_pair(manifest: Mapping) -> dict[str, str]:
    """Return the sample of a translator: one that says what its files say."""
    pairs = sorted(
        manifest["pairs"], key=lambda p: (p["format"] != "onnx", p["precision"] != "fp32")
    )
    if not pairs or pairs[0]["format"] != "onnx":
        return {}
    length = manifest["parts"]["encoder"]["inputs"][0]["shape"][1]
    halves = {half: pairs[0][half] for half in ("encoder", "decoder")}
    return {"python_translate.py": _fill("python_translate.py", length=length, **halves)}


def _pick(manifest: Mapping, kind: str, precision: str) -> str | None:
    """Return the file of a format, of the precision if there is one."""
    found = {f["precision"]: f["file"] for f in manifest["files"] if f["format"] == kind}
    return found.get(precision) or next(iter(found.values()), None)


def _fill(template: str, **values: object) -> str:
    text = (_TEMPLATES / f"{template}.in").read_text(encoding="utf-8")
    return string.Template(text).substitute(sample=template, **values)


def _is_painted(tensor: Mapping) -> bool:
    """Whether an output is a picture."""
    return (
        tensor["dtype"] == "uint8" and len(tensor["shape"]) == 4 and tensor["shape"][-1] in (1, 3)
    )


def _is_image(tensor: Mapping) -> bool:
    return bool(tensor.get("layout")) and tensor["shape"][-1] == 3


def contents(tensor: Mapping) -> str:
    """Return what an input of images or proposals holds, in words; nothing for another tensor."""
    if tensor["name"] == PROPOSALS:
        return "regions [y1, x1, y2, x2] in pixels of the image, zeros behind the last one"
    if not tensor.get("layout"):
        return ""
    low, high = tensor["range"]
    return f"{tensor['color']} pixels {low}-{high}, {tensor['layout']}"


def _is_labelled(manifest: Mapping, output: Mapping) -> bool:
    labels, shape = manifest["labels"], output["shape"]
    return bool(labels) and len(shape) == 2 and shape[1] == len(labels)


def _one(tensor: Mapping) -> list[int]:
    """Return a tensor's shape for a batch of 1."""
    return [n if isinstance(n, int) else 1 for n in tensor["shape"]]


def _note(tensor: Mapping) -> str:
    return " ".join(f"{tensor['dtype']} {_one(tensor)} {contents(tensor)}".split())


def _literal(name: str) -> str:
    """Quote a name for Python, C++ and Swift."""
    return json.dumps(name, ensure_ascii=False)


def _arguments(manifest: Mapping, word: str) -> str:
    return f" {word}" * sum(map(_is_image, manifest["inputs"]))


def _identifier(name: str) -> str:
    """Spell a tensor's name as a variable: `input_1` to `input1`."""
    words = re.findall(r"[A-Za-z0-9]+", name) or ["value"]
    name = words[0].lower() + "".join(word.title() for word in words[1:])
    return name if name[0].isalpha() else f"value{name}"


def _class_name(manifest: Mapping) -> str:
    name = _identifier(manifest["name"])
    return name[0].upper() + name[1:]


def _python(manifest: Mapping, file: str, template: str) -> str:
    inputs, place = [], 0
    for tensor in manifest["inputs"]:
        shape = _one(tensor)
        if _is_image(tensor):
            place += 1
            size = f"({shape[2]}, {shape[1]}), Image.Resampling.BILINEAR"
            image = f'Image.open(sys.argv[{place}]).convert("RGB").resize({size})'
            value = f"np.asarray(\n        {image}, np.{tensor['dtype']}\n    )[None]"
        elif manifest["task"] == "generation":
            drawn = f"np.random.default_rng().uniform(-1, 1, {shape})"
            value = f"{drawn}.astype(np.{tensor['dtype']})"
        else:
            value = f"np.zeros({shape}, np.{tensor['dtype']})"
        inputs.append(f"    {_literal(tensor['name'])}: {value},  # {_note(tensor)}")
    outputs = []
    for tensor in manifest["outputs"]:
        name = _literal(tensor["name"])
        if _is_labelled(manifest, tensor):
            outputs += [
                f'labels = (folder / "{LABELS_FILE}").read_text(encoding="utf-8").splitlines()',
                f"scores = outputs[{name}][0]  # {_note(tensor)}",
                "for i in np.argsort(-scores)[:5]:",
                '    print(f"{scores[i]:8.4f} {labels[i]}")',
            ]
        elif _is_painted(tensor):
            file_name = json.dumps(f"{tensor['name']}.png")
            outputs += [
                f"picture = outputs[{name}][0].squeeze()  # {_note(tensor)}",
                f"Image.fromarray(picture).save({file_name})",
            ]
        else:
            outputs.append(f"print({name}, outputs[{name}])  # {_note(tensor)}")
    pillow = place or any(map(_is_painted, manifest["outputs"]))
    return _fill(
        template,
        file=file,
        arguments=_arguments(manifest, "IMAGE"),
        packages=" pillow" if pillow else "",
        imports="from PIL import Image\n" if pillow else "",
        inputs="\n".join(inputs),
        outputs="\n".join(outputs),
    )


def _cpp(manifest: Mapping, file: str) -> str:
    inputs, place = [], 1
    for index, tensor in enumerate(manifest["inputs"]):
        shape, kind = _one(tensor), _TYPES[tensor["dtype"]][0]
        sides = ", ".join(map(str, shape))
        inputs.append(f"  // {tensor['name']}: {_note(tensor)}")
        size = math.prod(shape)
        if _is_image(tensor):
            place += 1
            inputs.append(f"  const auto bytes{index} = read_pixels(argv[{place}], {size});")
            source = f"(bytes{index}.begin(), bytes{index}.end())"
        else:
            source = f"({size})"
        inputs += [
            f"  std::vector<{kind}> input{index}{source};",
            f"  const std::array<int64_t, {len(shape)}> shape{index}{{{sides}}};",
            f"  inputs.push_back(Ort::Value::CreateTensor<{kind}>(",
            f"      memory, input{index}.data(), input{index}.size(), shape{index}.data(), "
            f"shape{index}.size()));",
        ]
    outputs = []
    for index, tensor in enumerate(manifest["outputs"]):
        kind = _TYPES[tensor["dtype"]][0]
        outputs += [
            f"  // {tensor['name']}: {_note(tensor)}",
            f"  const auto* output{index} = outputs[{index}].GetTensorData<{kind}>();",
            f"  const size_t size{index} = "
            f"outputs[{index}].GetTensorTypeAndShapeInfo().GetElementCount();",
            f"  for (size_t i = 0; i < size{index}; ++i)",
            f'    std::printf("%s[%zu] = %g\\n", output_names[{index}], i, '
            f"static_cast<double>(output{index}[i]));",
        ]
        if _is_labelled(manifest, tensor):
            outputs += [
                f"  const auto best = std::max_element(output{index}, output{index} + size{index}) "
                f"- output{index};",
                f'  std::printf("best: line %td of {LABELS_FILE}\\n", best + 1);',
            ]
    read = """
// Raw pixels, red, green, blue by turns; ImageMagick makes them:
//     convert photo.jpg -resize 'WIDTHxHEIGHT!' -depth 8 FILE.rgb
static std::vector<unsigned char> read_pixels(const char* path, size_t size) {
  std::ifstream file(path, std::ios::binary);
  std::vector<unsigned char> bytes((std::istreambuf_iterator<char>(file)), {});
  if (bytes.size() != size) {
    std::fprintf(stderr, "%s holds %zu bytes, not %zu\\n", path, bytes.size(), size);
    std::exit(2);
  }
  return bytes;
}
"""
    return _fill(
        "onnxruntime.cc",
        file=file,
        name=_identifier(manifest["name"]),
        arguments=_arguments(manifest, "FILE.rgb"),
        count=place + 1,
        read=read if place > 1 else "",
        inputs="\n".join(inputs),
        outputs="\n".join(outputs),
        input_names=", ".join(_literal(t["name"]) for t in manifest["inputs"]),
        output_names=", ".join(_literal(t["name"]) for t in manifest["outputs"]),
        outputs_count=len(manifest["outputs"]),
    )


def _kotlin(manifest: Mapping, file: str) -> str:
    def literal(name: str) -> str:
        return _literal(name).replace("$", "\\$")

    parameters, inputs, outputs = [], [], []
    for tensor in manifest["inputs"]:
        _, array, method, _ = _TYPES[tensor["dtype"]]
        variable, shape = _identifier(tensor["name"]), _one(tensor)
        value = variable
        if _is_image(tensor):
            array = "Bitmap"
            value = f"rgb({variable}, {shape[2]}, {shape[1]})"
            if method != "Int8":
                value += f".map {{ (it.toInt() and 255).to{method}() }}.to{method}Array()"
        parameters.append(f"{variable}: {array}")
        inputs += [
            f"        // {_note(tensor)}",
            f"        inputs.getValue({literal(tensor['name'])}).write{method}({value})",
        ]
    for tensor in manifest["outputs"]:
        method, name = _TYPES[tensor["dtype"]][2], literal(tensor["name"])
        variable = _identifier(tensor["name"])
        outputs += [
            f"        // {_note(tensor)}",
            f"        val {variable}Out = outputs.getValue({name}).read{method}()",
        ]
        if _is_labelled(manifest, tensor):
            order = f"{variable}Out.indices.sortedByDescending {{ {variable}Out[it] }}.take(5)"
            outputs += [
                f"        for (i in {order}) {{",
                f'            println("${{labels[i]}}: ${{{variable}Out[i]}}")',
                "        }",
            ]
        else:
            outputs.append(f'        println({name} + ": " + {variable}Out.contentToString())')
    labelled = any(_is_labelled(manifest, t) for t in manifest["outputs"])
    labels = f'    private val labels = context.assets.open("{LABELS_FILE}").reader().readLines()\n'
    rgb = """
    /** Raw pixels 0-255, red, green, blue by turns. */
    private fun rgb(bitmap: Bitmap, width: Int, height: Int): ByteArray {
        val pixels = IntArray(width * height)
        Bitmap.createScaledBitmap(bitmap, width, height, true)
            .getPixels(pixels, 0, width, 0, 0, width, height)
        return ByteArray(3 * pixels.size) { (pixels[it / 3] shr (16 - 8 * (it % 3))).toByte() }
    }
"""
    return _fill(
        "android_litert.kt",
        file=file,
        files=f"{file} and {LABELS_FILE}" if labelled else file,
        **{"class": _class_name(manifest)},
        labels=labels if labelled else "",
        parameters=", ".join(parameters),
        inputs="\n".join(inputs),
        outputs="\n".join(outputs),
        input_names=", ".join(literal(t["name"]) for t in manifest["inputs"]),
        output_names=", ".join(literal(t["name"]) for t in manifest["outputs"]),
        rgb=rgb if any(map(_is_image, manifest["inputs"])) else "",
    )


def _swift(manifest: Mapping, file: str) -> str:
    parameters, inputs, outputs = [], [], []
    for tensor in manifest["inputs"]:
        kind, variable = _TYPES[tensor["dtype"]][3], _identifier(tensor["name"])
        shape, value = _one(tensor), variable
        array = f"[{kind}]"
        if _is_image(tensor):
            array = "UIImage"
            value = f"rgb({variable}, width: {shape[2]}, height: {shape[1]})"
            value += "" if kind == "UInt8" else f".map {{ {kind}($0) }}"
        parameters.append(f"{variable}: {array}")
        inputs += [
            f"      // {_note(tensor)}",
            f"      {_literal(tensor['name'])}: {value}.withUnsafeBufferPointer {{ "
            "Data(buffer: $0) },",
        ]
    for tensor in manifest["outputs"]:
        kind, name = _TYPES[tensor["dtype"]][3], _literal(tensor["name"])
        variable = f"{_identifier(tensor['name'])}Out"
        outputs += [
            f"    // {_note(tensor)}",
            f"    let {variable} = try model.output(named: {name}).data.numbers({kind}.self)",
        ]
        if _is_labelled(manifest, tensor):
            order = (
                f"{variable}.indices.sorted(by: {{ {variable}[$0] > {variable}[$1] }}).prefix(5)"
            )
            outputs += [
                f"    for i in {order} {{",
                f"      print(labels[i], {variable}[i])",
                "    }",
            ]
        else:
            outputs.append(f"    print({name}, {variable})")
    labelled = any(_is_labelled(manifest, t) for t in manifest["outputs"])
    labels = """  private let labels = try! String(
    contentsOf: Bundle.main.url(forResource: "labels", withExtension: "txt")!, encoding: .utf8
  ).split(separator: "\\n")
"""
    rgb = """
  /// Raw pixels 0-255, red, green, blue by turns.
  private func rgb(_ image: UIImage, width: Int, height: Int) -> [UInt8] {
    var rgba = [UInt8](repeating: 0, count: 4 * width * height)
    rgba.withUnsafeMutableBytes { bytes in
      let context = CGContext(
        data: bytes.baseAddress, width: width, height: height, bitsPerComponent: 8,
        bytesPerRow: 4 * width, space: CGColorSpaceCreateDeviceRGB(),
        bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)!
      context.draw(image.cgImage!, in: CGRect(x: 0, y: 0, width: width, height: height))
    }
    return (0..<(3 * width * height)).map { rgba[$0 / 3 * 4 + $0 % 3] }
  }
"""
    return _fill(
        "ios_litert.swift",
        file=file,
        files=f"{file} and {LABELS_FILE}" if labelled else file,
        stem=file.removesuffix(".tflite"),
        **{"class": _class_name(manifest)},
        labels=labels if labelled else "",
        signature="serving_default",
        parameters=", ".join(parameters),
        inputs="\n".join(inputs),
        outputs="\n".join(outputs),
        rgb=rgb if any(map(_is_image, manifest["inputs"])) else "",
    )
