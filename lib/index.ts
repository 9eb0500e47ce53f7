export {
  AbortError, ArgumentError, BusyError, ContextOverflowError, DisposedError, ModelFormatError, NumericError, OutOfMemoryError, ShapeError, TokenloomError,
} from "./errors.js";
export { LanguageModel, loadModel, type LoadOptions, type LoadProgress } from "./generate/model.js";
export type { GenerateOptions, Prompt } from "./generate/options.js";
export type { Score, ScoreOptions } from "./generate/score.js";
export { Session, type FinishReason, type Piece, type SessionOptions, type SessionStatistics } from "./generate/session.js";
export { memory, systemInfo, type MemoryUse, type SystemInfo } from "./memory.js";
export { locateModel } from "./models/fetch.js";
export type { DecoderConfig } from "./models/config.js";
export type { ChatMessage } from "./tokenizer/template.js";
export type { EncodeOptions, Tokenizer } from "./tokenizer/tokenizer.js";
