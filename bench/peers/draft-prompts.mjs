// Prompts of four kinds for bench/draft.mjs, written for this project.
const passage =
  "The loom stood in the back room of the mill, where the light came late. Anna set the warp on Monday and counted four hundred threads. " +
  "On Tuesday she found that nine of them were broken, and she tied each one again. The owner of the mill, Mr. Harrow, wanted twelve yards of blue cloth by Friday. " +
  "Anna wove three yards a day and sang while she worked. On Thursday evening the shuttle cracked, and she borrowed another from her neighbour, old Tom Reed. " +
  "By noon on Friday the twelve yards of blue cloth lay folded on the table, and Mr. Harrow paid her eleven shillings.";
const record = '{"name": "Anna", "age": 31, "city": "Leeds", "trade": "weaver"}\n{"name": "Tom", "age": 67, "city": "York", "trade": "carpenter"}\n{"name": "Ruth", "age": 45, "city": "Hull", "trade": "dyer"}';

export const kinds = {
  chat: ["Tell me about the history of weaving.", "Why is the sky blue?", "Give me advice for a first day at a new job."],
  code: [
    "Write a Python class Stack with the methods push, pop, peek and is_empty, with docstrings.",
    "Write a JavaScript function that checks whether a string is a palindrome, then five tests for it.",
    "Write SQL statements that create a table of books and insert ten rows into it.",
  ],
  quote: [
    `Repeat the following text word for word:\n\n${passage}`,
    `Correct spelling mistakes in this text and write the whole text again:\n\n${passage}`,
    `Write these records again, with a new field "country" set to "England" in each:\n\n${record}`,
  ],
  list: ["List the numbers from one to forty in words.", "List twenty countries and their capitals, one a line.", "Make a table of the months of the year, their number and their length in days."],
};
