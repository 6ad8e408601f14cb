// node classify.mjs ONNXRUNTIME_WEB INPUT.json: runs each model on all images, prints their scores.
import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [home, input] = process.argv.slice(2);
const ort = await import(pathToFileURL(path.join(home, "dist", "ort.wasm.min.mjs")).href);
ort.env.wasm.numThreads = 1;
const { models, shape, pixels } = JSON.parse(fs.readFileSync(input));
const scores = {};
for (const model of models) {
  const session = await ort.InferenceSession.create(fs.readFileSync(model));
  const image = new ort.Tensor("uint8", Uint8Array.from(pixels), shape);
  const outputs = await session.run({ image });
  scores[path.basename(model)] = Array.from(outputs.probabilities.data);
}
console.log(JSON.stringify(scores));
