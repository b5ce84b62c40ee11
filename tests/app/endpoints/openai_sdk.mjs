// What OpenAI's JavaScript client gets from the server at the address in the first argument, as JSON. The other arguments
// are a picture and its mask.
import { readFileSync } from "node:fs";

import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const asked = { prompt: "a red heart", seed: 7 };

async function refusal(values) {
  try {
    await client.images.generate({ ...asked, ...values });
    return null;
  } catch (error) {
    return {
      kind: error.constructor.name, status: error.status, type: error.type, param: error.param, code: error.code,
      message: error.message,
    };
  }
}

const stream = await client.images.generate({ ...asked, stream: true, partial_images: 2 });
const events = [];
for await (const event of stream) {
  events.push({ type: event.type, index: event.partial_image_index, image: event.b64_json, usage: event.usage });
}
const formats = {};
for (const output_format of ["png", "jpeg", "webp"]) {
  formats[output_format] = (await client.images.generate({ ...asked, output_format })).data[0].b64_json;
}
const [image, mask] = await Promise.all(process.argv.slice(3).map((path) => toFile(readFileSync(path), path)));
const edited = { ...asked, image, mask, feather: 2 };
const edits = [];
for await (const event of await client.images.edit({ ...edited, stream: true, partial_images: 1 })) {
  edits.push({ type: event.type, image: event.b64_json });
}
const listed = [];
for await (const model of client.models.list()) listed.push(model.id);

console.log(JSON.stringify({
  listed,
  retrieved: (await client.models.retrieve("emoji")).id,
  pictures: await client.images.generate({ ...asked, n: 2 }),
  events,
  edited: await client.images.edit(edited),
  edits,
  formats,
  refusals: {
    style: await refusal({ style: "vivid" }),
    n: await refusal({ n: 11 }),
    model: await refusal({ model: "gpt-image-2" }),
    background: await refusal({ background: "transparent", stream: true }),
  },
}));
