// Embeds texts with transformers.js and ONNX Runtime in Node. The package is resolved from the current folder.

import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

const require = createRequire(path.join(process.cwd(), 'package.json'));
const { AutoModel, AutoTokenizer, Tensor, env, mean_pooling } = require('@huggingface/transformers');

// The file name that transformers.js reads for each of its data types.
const DTYPES = { 'onnx/model.onnx': 'fp32', 'onnx/model_quantized.onnx': 'q8' };
const SPEED_SECONDS = 2;

const [folder, requestFile, output] = process.argv.slice(2);

function readJson(...parts) {
  return JSON.parse(fs.readFileSync(path.join(...parts), 'utf8'));
}

/** The settings of the export, which transformers.js does not read. */
function readSettings() {
  const modules = readJson(folder, 'modules.json').map(({ type, path }) => [type.split('.').at(-1), path]);
  const pooling = Object.entries(readJson(folder, Object.fromEntries(modules).Pooling, 'config.json'));
  const { prompts } = readJson(folder, 'config_sentence_transformers.json');
  return {
    window: readJson(folder, 'sentence_bert_config.json').max_seq_length ?? Infinity,
    prompts: { query: prompts?.query ?? '', document: prompts?.document ?? '' },
    pooling: pooling.find(([key, used]) => key.startsWith('pooling_mode_') && used === true)[0],
    normalize: modules.some(([name]) => name === 'Normalize'),
  };
}

/** Load the model: a function from a batch of texts, and the name of their prompt, to an array of vectors. */
async function start(file) {
  const { window, prompts, pooling, normalize } = readSettings();
  env.allowRemoteModels = false;
  // transformers.js loads no model whose name begins with a dot, as that of an unfinished export does.
  const name = 'model';
  env.localModelPath = output;
  fs.symlinkSync(path.resolve(folder), path.join(output, name));
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  const model = await AutoModel.from_pretrained(name, { dtype: DTYPES[file], device: 'cpu' });

  // The tokenizer's own truncation drops the final [SEP], which the model has seen in training.
  function tokenIds(text) {
    const ids = tokenizer.encode(text);
    return ids.length > window ? [...ids.slice(0, window - 1), ids.at(-1)] : ids;
  }

  function toTensor(rows, padding) {
    const width = Math.max(...rows.map((row) => row.length));
    const padded = rows.flatMap((row) => [...row, ...Array(width - row.length).fill(padding)]);
    return new Tensor('int64', BigInt64Array.from(padded, BigInt), [rows.length, width]);
  }

  function pool(tokens, mask, lengths) {
    if (pooling === 'pooling_mode_mean_tokens') return mean_pooling(tokens, mask).tolist();
    const at = pooling === 'pooling_mode_cls_token' ? () => 0 : (row) => lengths[row] - 1;
    return tokens.tolist().map((each, row) => each[at(row)]);
  }

  return async (texts, kind) => {
    const rows = texts.map((text) => tokenIds(prompts[kind] + text));
    const attention_mask = toTensor(rows.map((row) => row.map(() => 1)), 0);
    const { last_hidden_state } = await model({
      input_ids: toTensor(rows, tokenizer.pad_token_id ?? 0),
      attention_mask,
      token_type_ids: toTensor(rows.map((row) => row.map(() => 0)), 0),
    });
    const vectors = pool(last_hidden_state, attention_mask, rows.map((row) => row.length));
    return normalize ? vectors.map(toUnitLength) : vectors;
  };
}

function toUnitLength(vector) {
  const length = Math.max(Math.hypot(...vector), 1e-12);
  return vector.map((value) => value / length);
}

function batches(items, size) {
  return Array.from({ length: Math.ceil(items.length / size) }, (_, i) => items.slice(i * size, (i + 1) * size));
}

/** The embeddings of all texts, in their order. A batch has texts of one kind only. */
async function embedAll(embed, { texts, kinds, batch_size }) {
  const vectors = Array(texts.length);
  for (const kind of new Set(kinds)) {
    const own = [...texts.keys()].filter((i) => kinds[i] === kind);
    for (const batch of batches(own, batch_size)) {
      const found = await embed(batch.map((i) => texts[i]), kind);
      batch.forEach((i, row) => (vectors[i] = found[row]));
    }
  }
  return vectors;
}

async function textsPerSecond(embed, texts, size) {
  const parts = batches(texts, size);
  await embed(parts[0], 'document'); // the first call also prepares the runtime
  const begin = performance.now();
  for (let done = 0, i = 0; ; i = (i + 1) % parts.length) {
    await embed(parts[i], 'document');
    done += parts[i].length;
    const seconds = (performance.now() - begin) / 1000;
    if (seconds >= SPEED_SECONDS) return done / seconds;
  }
}

async function main() {
  const request = readJson(requestFile);
  const embed = await start(request.file);
  const vectors = await embedAll(embed, request);
  fs.writeFileSync(path.join(output, 'vectors.f32'), Buffer.from(Float32Array.from(vectors.flat()).buffer));
  const speed = {};
  for (const size of [1, request.batch_size]) {
    speed[size] = await textsPerSecond(embed, request.speed_texts, size);
  }
  const versionOf = (name) => readJson(process.cwd(), 'node_modules', name, 'package.json').version;
  const versions = Object.fromEntries(
    ['@huggingface/transformers', 'onnxruntime-node'].map((name) => [name, versionOf(name)]),
  );
  const result = { dims: vectors[0].length, texts_per_second: speed, versions, notes: [] };
  fs.writeFileSync(path.join(output, 'result.json'), JSON.stringify(result));
}

main().catch((error) => {
  console.error(error.message ?? String(error));
  process.exit(1);
});
