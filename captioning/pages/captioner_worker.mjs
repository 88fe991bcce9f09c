// What works behind the page that captions in the browser: it loads the model and turns pictures into captions.
//
// It is sent {settings, base} once, then {id, picture}, a Blob each. It sends {loaded, total} in bytes, {ready},
// {id, caption} or {id, problem}, and {failed} where no picture can be captioned.
import { decoded, wordsIn } from "./greedy.mjs";
import { normalised, prepared, seenPart } from "./pillow.mjs";

const MOST_PIXELS = 178_956_970; // as captioning/data/images.py
let captioner; // a promise

onmessage = async ({ data: { settings, base, id, picture } }) => {
  if (settings) {
    captioner = loaded(settings, base);
    captioner.then(() => postMessage({ ready: true }), (error) => postMessage({ failed: String(error?.message ?? error) }));
    return;
  }
  try {
    const caption = await (await captioner)(picture);
    postMessage({ id, caption }, [caption.looks.buffer]);
  } catch (error) {
    postMessage({ id, problem: String(error?.message ?? error) });
  }
};

// Counts the bytes of all that is fetched. Nothing but what the page names is asked for.
function fetcher(settings, base) {
  const total = Object.values(settings.files).reduce((sum, size) => sum + size, 0);
  const sizes = new Map(Object.entries(settings.files).map(([path, size]) => [new URL(path, base).href, size]));
  let count = 0;
  return async (path, options = {}) => {
    const address = new URL(path, base).href;
    if (!sizes.has(address)) return new Response(null, { status: 404 });
    let answer;
    try {
      answer = await fetch(address, { cache: "no-cache", ...options }); // a folder may have been exported anew
    } catch {
      throw new Error(`${address} can't be fetched, or is not what this page was made with; reload the page.`);
    }
    if (!answer.ok) throw new Error(`${address} is not there (${answer.status}); copy the whole folder to the host.`);
    const parts = [];
    for (const reader = answer.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      postMessage({ loaded: count += value.length, total });
    }
    return new Response(new Blob(parts), { headers: answer.headers });
  };
}

async function loaded(settings, base) {
  const fetched = fetcher(settings, base);
  const asScript = async ({ path, integrity }, type = "text/javascript") => {
    const answer = await fetched(path, integrity ? { integrity } : {});
    return URL.createObjectURL(new Blob([await answer.arrayBuffer()], { type }));
  };
  const { library, loader, wasm } = settings.runtime;
  const [script, mjs, binary] = [await asScript(library), await asScript(loader), await asScript(wasm, "application/wasm")];
  const { AutoModelForVision2Seq, PreTrainedTokenizer, Tensor, env } = await import(script);
  Object.assign(env, {
    allowRemoteModels: false, allowLocalModels: true, localModelPath: "", useBrowserCache: false, useWasmCache: false,
    fetch: (path) => fetched(path.replace(/^\/?model\//, "")),
  });
  Object.assign(env.backends.onnx.wasm, { wasmPaths: { mjs, wasm: binary }, numThreads: 1, proxy: false });
  const [of, config] = await Promise.all(TOKENIZER.map(async (name) => (await fetched(name)).json()));
  const tokenizer = new PreTrainedTokenizer(of, config), blanks = blanksOf(of);
  const { sessions } = await AutoModelForVision2Seq.from_pretrained("model", { dtype: settings.dtype, device: "wasm" });
  return (picture) => captionOf(picture, { settings, tokenizer, blanks, sessions, Tensor });
}

const TOKENIZER = ["tokenizer.json", "tokenizer_config.json"];
const BLANKS = ["Ġ", "Ċ", "ĉ"]; // as captioning/data/tokenizer.py

// The ids of the tokens that begin a word.
function blanksOf({ model: { vocab } }) {
  const entries = Array.isArray(vocab) ? vocab.map(([token], id) => [token, id]) : Object.entries(vocab);
  return new Set(entries.filter(([token]) => BLANKS.includes(token[0])).map(([, id]) => id));
}

async function captionOf(picture, { settings, tokenizer, blanks, sessions, Tensor }) {
  const { format, rules } = settings;
  const { pixels, part } = await seen(picture, format);
  const encoder = sessions.model, decoder = sessions.decoder_model_merged;
  const [high, wide] = format.size;
  const pixel_values = new Tensor("float32", normalised(pixels, format), [1, 3, high, wide]).ort_tensor;
  const { last_hidden_state } = await encoder.run({ pixel_values });

  let past = {};
  for (const name of decoder.inputNames.filter((each) => each.startsWith("past_key_values."))) {
    past[name] = new Tensor("float32", new Float32Array(0), [1, settings.heads, 0, settings.head_width]).ort_tensor;
  }
  const chosen = await decoded(async (token) => {
    const input_ids = new Tensor("int64", BigInt64Array.of(BigInt(token)), [1, 1]).ort_tensor;
    const outputs = await decoder.run({ input_ids, encoder_hidden_states: last_hidden_state, ...past });
    past = Object.fromEntries(Object.keys(past).map((name) => [name, outputs[name.replace("past_key_values", "present")]]));
    return { logits: outputs.logits.data, looks: outputs.cross_attention.data };
  }, rules);
  return { ...worded(chosen, settings, tokenizer, blanks), part };
}

// The pixels that the model sees, and the part of the picture that they are of, each side a share of the picture's.
async function seen(picture, format) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(picture, { colorSpaceConversion: "none" }); // as Pillow, which leaves profiles alone
  } catch {
    throw new Error("This browser can’t decode it: not a picture, damaged, or of a format that it doesn’t know. Save it as PNG or JPEG.");
  }
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS) {
    throw new Error(`${width} × ${height} pixels are more than the limit of ${MOST_PIXELS}. Make it smaller.`);
  }
  try {
    const pixels = prepared(width, height, (...part) => partOf(bitmap, ...part), format);
    const [x, y, wide, high] = seenPart(width, height, format);
    return { pixels, part: [x / width, y / height, wide / width, high / height] };
  } finally {
    bitmap.close();
  }
}

const TILE = 4096; // pixels: a canvas of this side is allowed everywhere

// (height, width) pixels, RGBA, transparent parts on white.
function partOf(bitmap, left, top, width, height) {
  const whole = new Uint8ClampedArray(width * height * 4);
  for (let y = 0; y < height; y += TILE) {
    for (let x = 0; x < width; x += TILE) {
      const wide = Math.min(TILE, width - x), high = Math.min(TILE, height - y);
      const context = new OffscreenCanvas(wide, high).getContext("2d", { willReadFrequently: true });
      context.fillStyle = "white";
      context.fillRect(0, 0, wide, high);
      context.drawImage(bitmap, -(left + x), -(top + y));
      const { data } = context.getImageData(0, 0, wide, high);
      if (wide === width) {
        whole.set(data, y * width * 4);
      } else {
        for (let row = 0; row < high; row++) {
          whole.set(data.subarray(row * wide * 4, (row + 1) * wide * 4), ((y + row) * width + x) * 4);
        }
      }
    }
  }
  return whole;
}

// Caption, words with the probability of each and where the model looked, (words, rows * columns), and log p per token.
function worded(chosen, { rules, prefix_tokens }, tokenizer, blanks) {
  const spelled = (ids) => tokenizer.decode(ids, { skip_special_tokens: true, clean_up_tokenization_spaces: false }).trim();
  const ended = rules.ends.includes(chosen.at(-1).token);
  const tokens = chosen.slice(0, ended ? -1 : undefined).map((each) => each.token);
  const groups = wordsIn(tokens, (token) => blanks.has(token));
  const words = [], maps = [];
  for (const places of [...groups, ...(ended ? [[tokens.length]] : [])]) {
    const of = places.map((place) => chosen[place]);
    const text = places[0] === tokens.length ? null : spelled(of.map((each) => each.token));
    if (text === "") continue;
    words.push({ text, probability: Math.exp(of.reduce((sum, each) => sum + each.logProbability, 0)) });
    const patches = of[0].looks.length - prefix_tokens;
    maps.push(Float32Array.from({ length: patches }, (_, i) => of.reduce((sum, { looks }) => sum + looks[prefix_tokens + i], 0) / of.length));
  }
  const free = chosen.filter((each) => !each.forced);
  const looks = new Float32Array(maps.reduce((sum, map) => sum + map.length, 0));
  maps.forEach((map, i) => looks.set(map, i * map.length));
  const log_probability = free.reduce((sum, each) => sum + each.logProbability, 0) / free.length;
  return { text: spelled(tokens), words, looks, log_probability };
}
