/** Byte-level BPE writes each byte as one printable character: byte → code point, GPT-2's alphabet. */
export const BYTE_TO_CODE: Uint16Array = byteAlphabet();

/** The inverse: code point (below 512) → byte, −1 where the alphabet has no such character. */
export const CODE_TO_BYTE: Int16Array = inverse(BYTE_TO_CODE);

function byteAlphabet(): Uint16Array {
  const codes = new Uint16Array(256);
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    codes[byte] = printable ? byte : next++;
  }
  return codes;
}

function inverse(codes: Uint16Array): Int16Array {
  const bytes = new Int16Array(512).fill(-1);
  for (const [byte, code] of codes.entries()) bytes[code] = byte;
  return bytes;
}

/**
 * Decodes `source[begin, end)`, UTF-8 of the byte alphabet, to the bytes it stands for, at `target[at …]`. Gives the
 * new end of target, −1 where a character is outside of the alphabet. Never longer than the source.
 */
export function decodeAlphabet(source: Uint8Array, begin: number, end: number, target: Uint8Array, at: number): number {
  for (let index = begin; index < end; index++) {
    const first = source[index] as number;
    let code = first;
    if (first >= 0x80) {
      const second = index + 1 < end ? (source[++index] as number) : 0;
      if (first < 0xc2 || first >= 0xe0 || (second & 0xc0) !== 0x80) return -1;
      code = ((first & 0x1f) << 6) | (second & 0x3f);
    }
    const byte = code < 512 ? (CODE_TO_BYTE[code] as number) : -1;
    if (byte < 0) return -1;
    target[at++] = byte;
  }
  return at;
}

/**
 * Writes `text[begin, end)` as UTF-8 to `target[at …]` and gives the new end; target needs 3 bytes a code unit. The
 * text is well-formed. For short pieces this is faster than TextEncoder.
 */
export function writeUtf8(text: string, begin: number, end: number, target: Uint8Array, at: number): number {
  for (let index = begin; index < end; index++) {
    let code = text.charCodeAt(index);
    if (code < 0x80) {
      target[at++] = code;
    } else if (code < 0x800) {
      target[at++] = 0xc0 | (code >> 6);
      target[at++] = 0x80 | (code & 0x3f);
    } else if (code >= 0xd800 && code < 0xdc00) {
      code = 0x10000 + ((code - 0xd800) << 10) + (text.charCodeAt(++index) - 0xdc00);
      target[at++] = 0xf0 | (code >> 18);
      target[at++] = 0x80 | ((code >> 12) & 0x3f);
      target[at++] = 0x80 | ((code >> 6) & 0x3f);
      target[at++] = 0x80 | (code & 0x3f);
    } else {
      target[at++] = 0xe0 | (code >> 12);
      target[at++] = 0x80 | ((code >> 6) & 0x3f);
      target[at++] = 0x80 | (code & 0x3f);
    }
  }
  return at;
}

/** Bytes of the UTF-8 character that begins with this byte. */
export function utf8Length(first: number): number {
  return first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

/** The text with lone surrogates replaced by U+FFFD, as every UTF-8 encoder does. */
export function wellFormed(text: string): string {
  // In every Node ≥ 20, not yet in the compiler's library of that year.
  return (text as string & { toWellFormed(): string }).toWellFormed();
}
