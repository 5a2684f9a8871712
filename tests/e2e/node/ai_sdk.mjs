// The Vercel AI SDK with its openai-compatible provider: an edit, a refusal.
import assert from "node:assert";
import fs from "node:fs";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage } from "ai";

const [url, photo] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "retouch", baseURL: `${url}/v1`, apiKey: "any" });
const edit = (text) =>
  generateImage({
    model: provider.imageModel("any"),
    prompt: { text, images: [fs.readFileSync(photo)] },
    providerOptions: { retouch: { seed: 7 } },
    maxRetries: 0,
  });

const { image } = await edit("make it warmer");
assert.equal(Buffer.from(image.uint8Array).subarray(1, 4).toString(), "PNG");

await assert.rejects(edit("<|x|>"), { statusCode: 400 });
