export { draftModel, type DraftingModel, type DraftModelOptions, type DraftText } from "./draft/draft-model.js";
export type { DraftContext, Drafter, DraftState, DraftStep, TopTokens } from "./draft/drafter.js";
export { lookupPrompt, promptLookup, type PromptLookupMatch, type PromptLookupOptions } from "./draft/prompt-lookup.js";
export { TreeSize } from "./draft/size.js";
export { recyclingTemplate, templateOf, type TreeTemplate } from "./draft/template.js";
export { tokenRecycling, type TokenRecycling, type TokenRecyclingOptions } from "./draft/token-recycling.js";
export { DraftTree, mergeTrees } from "./draft/tree.js";
export { verifyGreedy, verifySampled, type SampledVerification, type Verification } from "./draft/verify.js";
export {
  AbortError, ArgumentError, BusyError, ContextOverflowError, DisposedError, ModelFormatError, NumericError, OutOfMemoryError, ShapeError, TokenloomError,
} from "./errors.js";
export { LanguageModel, loadModel, type CacheType, type LoadOptions, type LoadProgress } from "./generate/model.js";
export type { GenerateOptions, Prompt } from "./generate/options.js";
export type { Score, ScoreOptions } from "./generate/score.js";
export { Session, type FinishReason, type Piece, type SessionOptions, type SessionStatistics } from "./generate/session.js";
export type { DraftStatistics, VerifiedDraft } from "./generate/speculation.js";
export { memory, systemInfo, type MemoryUse, type SystemInfo } from "./memory.js";
export { FetchError, locateModel } from "./models/fetch.js";
export type { DecoderConfig } from "./models/config.js";
export type { ChatMessage } from "./tokenizer/template.js";
export type { EncodeOptions, Tokenizer } from "./tokenizer/tokenizer.js";
export * as ops from "./ops/eager.js";
export { alibiSlopes } from "./ops/attention.js";
export type { AttentionMask, AttentionOptions, AttentionScores, AttentionSource } from "./ops/attention.js";
export type { RopeScaling } from "./ops/rope.js";
export { Tensor, tensor, zeros, type TensorType } from "./tensor.js";
