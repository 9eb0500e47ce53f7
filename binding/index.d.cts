import type { NativeAddon } from "../lib/native.js";
declare const addon: NativeAddon;
export = addon;
