// sharp's side of bench/render.py: LANCZOS3, each level from the one above, decoded once; memory to memory.
// Prints the milliseconds of computing time and of the clock for each line that it reads.
"use strict";
const fs = require("fs");
const readline = require("readline");
const sharp = require(require.resolve("sharp", { paths: [process.env.ASGI_LOOK_BENCH_SHARP || process.cwd(), process.cwd()] }));

sharp.concurrency(1);
sharp.cache(false);
const original = fs.readFileSync(process.argv[2]);
const least = Number(process.argv[3]);
const jpeg = { quality: 85, chromaSubsampling: "4:2:0", mozjpeg: false, progressive: false, optimizeCoding: false };
const lanczos = { kernel: "lanczos3", fit: "fill", fastShrinkOnLoad: false };

async function ladder() {
  const { data, info } = await sharp(original).raw().toBuffer({ resolveWithObject: true });
  let raw = { width: info.width, height: info.height, channels: info.channels };
  let level = data;
  const pictures = [await sharp(level, { raw }).jpeg(jpeg).toBuffer()];
  for (;;) {
    const width = raw.width >> 1, height = raw.height >> 1;
    if (Math.min(width, height) < least) return pictures;
    level = await sharp(level, { raw }).resize(width, height, lanczos).raw().toBuffer();
    raw = { width, height, channels: raw.channels };
    pictures.push(await sharp(level, { raw }).jpeg(jpeg).toBuffer());
  }
}

// Each size from the file, decoded smaller: faster only where nothing but a thumbnail is wanted.
async function shrunkOnLoad() {
  const { width, height } = await sharp(original).metadata();
  const pictures = [await sharp(original).jpeg(jpeg).toBuffer()];
  for (let w = width >> 1, h = height >> 1; Math.min(w, h) >= least; w >>= 1, h >>= 1)
    pictures.push(await sharp(original).resize(w, h, { kernel: "lanczos3", fit: "fill" }).jpeg(jpeg).toBuffer());
  return pictures;
}

async function main() {
  const way = process.argv[4] === "shrunk" ? shrunkOnLoad : ladder;
  for await (const _ of readline.createInterface({ input: process.stdin })) {
    await way(); // as all sides do: see render.py
    const cpu = process.cpuUsage(), clock = process.hrtime.bigint();
    await way();
    const used = process.cpuUsage(cpu), elapsed = process.hrtime.bigint() - clock;
    console.log((used.user + used.system) / 1e3, Number(elapsed) / 1e6);
  }
}
main();
