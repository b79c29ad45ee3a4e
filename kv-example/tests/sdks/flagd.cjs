// Evaluates flags by npm's provider for flagd, in this process: FOLDER, then `sync PORT SET` or `file PATH`, then flags.
// One line of JSON at the start and after each change: the variants of all users of each flag.
const { createRequire } = require("node:module");

const [folder, mode, place, ...rest] = process.argv.slice(2);
const load = createRequire(folder + "/node_modules/");
const { OpenFeature, ProviderEvents } = load("@openfeature/server-sdk");
const { FlagdProvider } = load("@openfeature/flagd-provider");

const USERS = Array.from({ length: 40 }, (_, number) => `user-${number}`);
const flags = mode === "sync" ? rest.slice(1) : rest;
const options =
  mode === "sync"
    ? { host: "127.0.0.1", port: Number(place), selector: `flagSetId=${rest[0]}`, deadlineMs: 20_000 }
    : { offlineFlagSourcePath: place };

const show = async () => {
  const client = OpenFeature.getClient();
  const told = {};
  for (const flag of flags) {
    const details = USERS.map((targetingKey) => client.getStringDetails(flag, "", { targetingKey }));
    told[flag] = (await Promise.all(details)).map(({ variant }) => variant ?? null);
  }
  console.log(JSON.stringify(told));
};

OpenFeature.addHandler(ProviderEvents.ConfigurationChanged, show);
OpenFeature.setProviderAndWait(new FlagdProvider({ resolverType: "in-process", ...options })).then(show);
