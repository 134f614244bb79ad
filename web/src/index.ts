/** Clears up speech in the browser: recordings with `createEnhancer`, live audio with `createEnhancerNode`. */

export { createEnhancer, type EnhancedFile, type Enhancer, type RunOptions } from "./enhancer.js";
export { createEnhancerNode, type EnhancerNode, type NodeOptions } from "./node.js";
export type { EnhanceOptions, Speed } from "./messages.js";
export type { ModelInfo } from "./model.js";
export type { Gap } from "./processor_options.js";
export type { AssetOptions } from "./remote.js";
export type { Signal } from "./signal.js";
export { decode } from "./decode.js";
export { toWav } from "./wav.js";
