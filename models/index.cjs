"use strict";
// Where the models inside of this package are, for code that is compiled both as ESM and as CommonJS.
module.exports = __dirname;
