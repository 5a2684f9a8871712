// openai-node: an edit, its stream, a refusal.
import assert from "node:assert";
import fs from "node:fs";
import OpenAI from "openai";

const [url, photo] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any", maxRetries: 0 });
const edit = (more) => client.images.edit({ image: fs.createReadStream(photo), prompt: "make it warmer", ...more });

const answer = await edit({ model: "gpt-image-1", seed: 7 });
assert.equal(Buffer.from(answer.data[0].b64_json, "base64").subarray(1, 4).toString(), "PNG");

const kinds = [];
for await (const event of await edit({ stream: true, partial_images: 1 })) kinds.push(event.type);
assert.deepEqual(kinds, ["image_edit.partial_image", "image_edit.completed"]);

await assert.rejects(edit({ prompt: "" }), { status: 400, param: "prompt", code: "invalid_request" });
