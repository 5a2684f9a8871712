// openapi-fetch with the types that openapi-typescript generates: an edit, a refusal.
import createClient from "openapi-fetch";
import type { paths } from "./schema.js";

declare const process: { argv: string[] };
const [url, image_url] = process.argv.slice(2) as [string, string];
const client = createClient<paths>({ baseUrl: url });

const { data } = await client.POST("/edit", { body: { image_url, prompt: "make it warmer", seed: 7 } });
if (data?.result.meta.seed !== 7 || !data.result.presigned_url.startsWith("http")) throw new Error(JSON.stringify(data));

const { error } = await client.POST("/edit", { body: { image_url, prompt: "" } });
if (error?.error.details.code !== "invalid_request") throw new Error(JSON.stringify(error));

// @ts-expect-error: a field with a wrong type does not compile
const wrong = () => client.POST("/edit", { body: { image_url, prompt: 7 } });
