// Builds the package into dist/ and the page into build/page/. `--serve` also serves the page on localhost, `--tests` builds
// what the tests run in Node.js.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, mkdirSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import * as esbuild from "esbuild";

process.chdir(fileURLToPath(new URL(".", import.meta.url)));
const PACKAGE = "dist";
const PAGE = "build/page";
const WEIGHTS = process.env.CLEARSTATE_MODEL ?? "../src/clearstate/weights/live/model.onnx";
const EXAMPLE = "../examples/clips/helicopter_0db.noisy.flac";
const RUNTIME = "node_modules/onnxruntime-web";
const PORT = Number(process.env.PORT ?? 8000);

const common = { bundle: true, format: "esm", target: "es2022", minify: true, legalComments: "linked", logLevel: "warning" };
const version = JSON.parse(readFileSync("package.json", "utf8")).version;

for (const folder of [PACKAGE, PAGE]) rmSync(folder, { recursive: true, force: true });
mkdirSync(PAGE, { recursive: true });

await esbuild.build({
  ...common,
  entryPoints: ["index", "worker", "processor"].map((name) => `src/${name}.ts`),
  outdir: PACKAGE,
});
execFileSync("node_modules/.bin/tsc", ["--project", "tsconfig.json"], { stdio: "inherit" });
cpSync(`${RUNTIME}/dist/ort-wasm-simd-threaded.wasm`, `${PACKAGE}/ort-wasm-simd-threaded.wasm`);
cpSync(WEIGHTS, `${PACKAGE}/model.onnx`);
cpSync("third_party.txt", `${PACKAGE}/third_party.txt`);

// What the page needs of the package, and the page.
for (const name of ["worker.js", "processor.js", "ort-wasm-simd-threaded.wasm", "model.onnx"]) {
  cpSync(join(PACKAGE, name), join(PAGE, name));
}
cpSync(EXAMPLE, join(PAGE, "example.flac"));
for (const name of readdirSync("page/static")) cpSync(join("page/static", name), join(PAGE, name));
await esbuild.build({
  ...common,
  entryPoints: ["main", "benchmark", "recorder"].map((name) => `page/${name}.ts`),
  outdir: PAGE,
  legalComments: "none",
});

const files = readdirSync(PAGE).sort();
const digest = createHash("sha256");
for (const name of files) digest.update(readFileSync(join(PAGE, name)));
await esbuild.build({
  ...common,
  format: "iife",
  entryPoints: ["page/service_worker.ts"],
  outdir: PAGE,
  legalComments: "none",
  define: {
    FILES: JSON.stringify(["./", ...files]),
    VERSION: JSON.stringify(`${version}-${digest.digest("hex").slice(0, 12)}`),
  },
});

if (process.argv.includes("--tests")) {
  await esbuild.build({
    ...common,
    minify: false,
    platform: "node",
    entryPoints: ["tests/unit.test.ts", "tests/chain.ts"],
    outdir: "build/tests",
    packages: "external",
  });
}
if (process.argv.includes("--serve")) {
  const context = await esbuild.context({});
  const { port } = await context.serve({ servedir: PAGE, host: "127.0.0.1", port: PORT });
  console.log(`${basename(PAGE)}: http://127.0.0.1:${port}/   (Ctrl-C stops)`);
}
