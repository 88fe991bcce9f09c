// node caption.mjs MODEL DTYPE PICTURE...: transformers.js's captions of pictures, a line of JSON each, without a network.
import { env, pipeline } from "@huggingface/transformers";

const [model, dtype, ...pictures] = process.argv.slice(2);
globalThis.fetch = (address) => {
  throw new Error(`nothing may be fetched, and ${address} was asked for`);
};
env.allowRemoteModels = false;
env.localModelPath = "/";
const captioner = await pipeline("image-to-text", model, { dtype });
for (const picture of pictures) {
  const [{ generated_text }] = await captioner(picture);
  console.log(JSON.stringify(generated_text.trim()));
}
