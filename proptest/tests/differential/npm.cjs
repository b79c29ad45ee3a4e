// Evaluates cases with npm's @openfeature/flagd-core. Reads chunks from the file that is named, one JSON text per line,
// and writes one answer per case.
const { createRequire } = require('module');
const { readFileSync } = require('fs');
const { FlagdCore } = createRequire(process.argv[2] + '/')('@openfeature/flagd-core');

const quiet = { error() {}, warn() {}, info() {}, debug() {} };
for (const line of readFileSync(process.argv[3], 'utf8').split('\n').filter(Boolean)) {
  const { file, contexts } = JSON.parse(line);
  const core = new FlagdCore(undefined, quiet);
  core.setConfigurations(JSON.stringify(file));
  const answers = contexts.map(({ flag, context }) => {
    const told = core.resolveStringEvaluation(flag, 'code default', context, quiet);
    return [told.variant ?? null, told.value, told.reason, told.errorCode ?? null];
  });
  console.log(answers.map((answer) => JSON.stringify(answer)).join('\n'));
}
