//! The files in `deploy/`, compared with the program: settings, ports and paths by starting nodes with them, names of
//! metrics with those that a node shows, and forms with what is published of them.

#[path = "../common/mod.rs"]
mod common;
mod metrics;
mod published;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Running, ask, folder, private_file, program, start};
use serde_json::{Map, Value};
use tidings_proptest::processes::eventually;
use yaml_rust2::{Yaml, YamlLoader};

fn text(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents of a YAML file, with merged mappings (`<<`) in place.
fn yaml(file: &str) -> Vec<Value> {
    YamlLoader::load_from_str(&text(file)).unwrap().iter().map(json).collect()
}

fn json(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Hash(hash) => {
            let mut map = Map::new();
            for (key, value) in hash {
                let (key, value) = (key.as_str().expect("keys are texts"), json(value));
                if key == "<<" {
                    let merged = value.as_object().unwrap().clone();
                    merged.into_iter().for_each(|(key, value)| _ = map.entry(key).or_insert(value));
                } else {
                    map.insert(key.to_owned(), value);
                }
            }
            map.into()
        }
        Yaml::Array(items) => items.iter().map(json).collect(),
        Yaml::String(text) | Yaml::Real(text) => text.clone().into(),
        Yaml::Integer(number) => (*number).into(),
        Yaml::Boolean(is_so) => (*is_so).into(),
        Yaml::Null => Value::Null,
        Yaml::Alias(_) | Yaml::BadValue => panic!("an alias without an anchor"),
    }
}

/// The document of this kind and name among those for Kubernetes.
fn resource(kind: &str, name: &str) -> Value {
    let mut all = yaml("kubernetes.yaml").into_iter();
    all.find(|one| one["kind"] == kind && one["metadata"]["name"] == name).unwrap()
}

fn pod() -> Value {
    resource("StatefulSet", "tidings")["spec"]["template"].clone()
}

type Environment = BTreeMap<String, String>;

/// The environment of the container of the pod with this name.
fn pod_environment(name: &str) -> Environment {
    let variable = |one: &Value| {
        let value = match one["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
            Some("metadata.name") => name,
            Some(other) => panic!("what is {other}?"),
            None => one["value"].as_str().unwrap(),
        };
        (one["name"].as_str().unwrap().to_owned(), value.to_owned())
    };
    pod()["spec"]["containers"][0]["env"].as_array().unwrap().iter().map(variable).collect()
}

fn compose_environment(name: &str) -> Environment {
    let compose = yaml("docker-compose.yml").remove(0);
    let environment = compose["services"][name]["environment"].as_object().unwrap().clone();
    environment.into_iter().map(|(name, value)| (name, value.as_str().unwrap().to_owned())).collect()
}

/// The environment with the folders and addresses of a container replaced by some of this machine.
fn here(environment: &Environment, folder: &Path, seeds: &str) -> Environment {
    let place = |(name, value): (&String, &String)| {
        let value = match name.as_str() {
            "TIDINGS_LISTEN" | "TIDINGS_HTTP" => {
                let (addr, port) = value.rsplit_once(':').unwrap();
                let port_expected = if name == "TIDINGS_LISTEN" { "7400" } else { "8080" };
                assert!(matches!(addr, "[::]" | "0.0.0.0") && port == port_expected, "{name}={value}");
                format!("{addr}:0")
            }
            "TIDINGS_SEEDS" => seeds.to_owned(),
            _ if value.starts_with('/') => folder.join(&value[1..]).to_str().unwrap().to_owned(),
            _ => value.clone(),
        };
        (name.clone(), value)
    };
    let mut environment: Environment = environment.iter().map(place).collect();
    if seeds.is_empty() {
        environment.remove("TIDINGS_SEEDS");
    }
    environment.insert("TIDINGS_PROFILE".to_owned(), "local".to_owned());
    environment
}

fn with(environment: &Environment, words: &[&str]) -> Command {
    let mut command = program();
    command.args(words).envs(environment);
    command
}

/// A token that all files name, where they name one.
const TOKEN: &str = "kz7v-93ma-tq8x-5hbn-w2yr-e6pd-jc4s-u9gf";

/// A folder as the root of a container's files, with the secret and the tokens that the environment names.
fn container(name: &str, environment: &Environment) -> PathBuf {
    let root = folder(name);
    for (variable, text) in [
        ("TIDINGS_SECRET_FILE", common::SECRET),
        ("TIDINGS_TOKEN_FILE", TOKEN),
        ("TIDINGS_READ_TOKEN_FILE", "hq3w-r8zt-6vka-n4xe-p9cm-2dyb-s7ju-g5fh"),
    ] {
        if let Some(path) = environment.get(variable) {
            let path = root.join(&path[1..]);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            private_file(&path, text);
        }
    }
    root
}

/// The address of this machine at which a node that listens on all of them is found.
fn loopback(addr: &str) -> String {
    format!("127.0.0.1:{}", addr.rsplit_once(':').unwrap().1)
}

/// Starts nodes with these environments, each with the first as its seed, and waits until all have found each other.
fn cluster(test: &str, environments: &[Environment]) -> Vec<(Running, Environment)> {
    let mut nodes: Vec<(Running, Environment)> = Vec::new();
    for environment in environments {
        let root = container(&format!("{test}-{}", environment["TIDINGS_NAME"]), environment);
        let seeds = nodes.first().map_or(String::new(), |(first, _)| loopback(&first.addr));
        let mut environment = here(environment, &root, &seeds);
        let mut node = start(with(&environment, &["serve", "--log", "off"]));
        node.http = format!("http://{}", loopback(&node.http));
        environment.insert("TIDINGS_NODE".to_owned(), node.http.clone());
        nodes.push((node, environment));
    }
    for (node, environment) in &nodes {
        let ready = format!("{}/readyz", node.http);
        eventually("the node is ready", || ask("GET", &ready, &[], b"").status == 200);
        eventually("it knows all", || members(environment, "alive") == environments.len());
    }
    nodes
}

/// How many members are in this state, as a command with the same environment learns.
fn members(environment: &Environment, state: &str) -> usize {
    let output = with(environment, &["members", "--json"]).output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let members = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    members.filter(|member| member["state"] == state).count()
}

#[test]
fn compose_file_starts_three_nodes_that_find_each_other() {
    let compose = yaml("docker-compose.yml").remove(0);
    let names: Vec<&String> = compose["services"].as_object().unwrap().keys().collect();
    let environments: Vec<Environment> = names.iter().map(|name| compose_environment(name)).collect();
    let seeds: Vec<String> = names.iter().map(|name| format!("{name}:7400")).collect();
    let voters = names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(",");
    for (name, environment) in names.iter().zip(&environments) {
        assert_eq!(&environment["TIDINGS_NAME"], *name);
        assert_eq!(environment["TIDINGS_SEEDS"], seeds.join(","));
        assert_eq!(environment["TIDINGS_VOTERS"], voters);
        let service = &compose["services"][name.as_str()];
        let volumes = service["volumes"].to_string();
        assert!(volumes.contains(&format!("\"{name}:/data\"")), "{volumes}");
        assert!(volumes.contains("\"./secrets:/secrets:ro\""), "{volumes}");
        assert!(compose["volumes"].as_object().unwrap().contains_key(name.as_str()), "{name}");
        assert_eq!((&service["command"][0], &service["image"]), (&"serve".into(), &"tidings".into()));
        assert!(service["ports"][0].as_str().unwrap().ends_with(":8080"));
    }
    let mut nodes = cluster("compose", &environments);
    // As `docker compose stop` does: the node stays expected.
    let (mut node, _) = nodes.pop().unwrap();
    _ = Command::new("sh").args(["-c", &format!("kill -TERM {}", node.pid())]).output();
    assert!(node.process.child.wait().unwrap().success());
    let first = &nodes[0].1;
    eventually("it is expected", || members(first, "down") == 1 && members(first, "left") == 0);
}

#[test]
fn pods_find_each_other_and_leave_when_they_are_scaled_away() {
    let names = ["tidings-0", "tidings-1", "tidings-2", "tidings-3"];
    let mut nodes = cluster("pods", &names.map(pod_environment));
    let hook = &pod()["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"];
    let hook: Vec<&str> = hook.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    let path = Path::new(common::PROGRAM).parent().unwrap().to_str().unwrap();
    let path = format!("{path}:{}", std::env::var("PATH").unwrap());
    // As the kubelet does: the hook, and then SIGTERM.
    let stop = |(node, environment): &mut (Running, Environment)| {
        let mut command = Command::new(hook[0]);
        command.args(&hook[1..]).envs(&*environment).env("PATH", &path);
        assert!(command.status().unwrap().success());
        _ = Command::new("sh").args(["-c", &format!("kill -TERM {}", node.pid())]).output();
        node.process.child.wait().unwrap();
    };
    let first = nodes[0].1.clone();
    stop(&mut nodes[3]);
    eventually("the one that no voter is named for leaves", || members(&first, "left") == 1);
    stop(&mut nodes[2]);
    eventually("the voter stays expected", || members(&first, "down") == 1);
    assert_eq!((members(&first, "alive"), members(&first, "left")), (2, 1));
}

#[test]
fn pods_of_voters_are_ready_when_they_vote() {
    let probe = &pod()["spec"]["containers"][0]["readinessProbe"];
    let [period, successes] =
        ["periodSeconds", "successThreshold"].map(|field| probe[field].as_u64().unwrap());
    let config = tidings::Config::lan();
    let silent = (config.lease_time_max + config.clock_skew_max) * 10 / 9;
    assert!(
        Duration::from_secs(period * (successes - 1)) > silent,
        "{successes} answers, silent for {silent:?}"
    );
}

#[test]
fn ports_paths_users_and_labels_of_the_manifests_agree() {
    let pod = pod();
    let (set, container) = (resource("StatefulSet", "tidings"), &pod["spec"]["containers"][0]);
    let environment = pod_environment("tidings-0");
    // Ports: what is listened on, what the image exposes, and what services, probes and policies name.
    let port_of = |variable: &str| environment[variable].rsplit_once(':').unwrap().1.parse::<u64>().unwrap();
    let (gossip, http) = (port_of("TIDINGS_LISTEN"), port_of("TIDINGS_HTTP"));
    let ports: Vec<(&str, u64, &str)> = container["ports"].as_array().unwrap().iter().map(port).collect();
    assert_eq!(ports, [("gossip", gossip, "UDP"), ("http", http, "TCP")]);
    let dockerfile = text("Dockerfile");
    assert!(dockerfile.contains(&format!("EXPOSE {gossip}/udp {http}/tcp")), "{dockerfile}");
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], "http", "{probe}");
    }
    assert_eq!(pod["metadata"]["annotations"]["prometheus.io/port"], http.to_string());
    for (service, name, port) in [("tidings-nodes", "gossip", gossip), ("tidings", "http", http)] {
        let service = resource("Service", service);
        let own = &service["spec"]["ports"][0];
        assert_eq!((&own["targetPort"], own["port"].as_u64()), (&name.into(), Some(port)));
        assert_eq!(service["spec"]["selector"], pod["metadata"]["labels"]);
    }
    let policy = resource("NetworkPolicy", "tidings");
    for direction in ["ingress", "egress"] {
        assert_eq!(policy["spec"][direction][0]["ports"][0]["port"], gossip);
    }
    assert_eq!(policy["spec"]["ingress"][1]["ports"][0]["port"], http);
    // Names that have to fit.
    let labels = &pod["metadata"]["labels"];
    let headless = resource("Service", set["spec"]["serviceName"].as_str().unwrap());
    assert_eq!((&headless["spec"]["clusterIP"], set["spec"]["replicas"].as_u64()), (&"None".into(), Some(3)));
    assert_eq!(environment["TIDINGS_SEEDS"], format!("tidings-nodes:{gossip}"));
    for selector in [
        &set["spec"]["selector"]["matchLabels"],
        &resource("PodDisruptionBudget", "tidings")["spec"]["selector"]["matchLabels"],
        &policy["spec"]["podSelector"]["matchLabels"],
        &policy["spec"]["egress"][0]["to"][0]["podSelector"]["matchLabels"],
    ] {
        assert_eq!(selector, labels);
    }
    // Folders are mounted, never single files, which would stay as they are.
    let mounts = container["volumeMounts"].as_array().unwrap();
    for variable in
        ["TIDINGS_DATA_DIR", "TIDINGS_SECRET_FILE", "TIDINGS_TOKEN_FILE", "TIDINGS_READ_TOKEN_FILE"]
    {
        let is_below =
            |mount: &Value| environment[variable].starts_with(mount["mountPath"].as_str().unwrap());
        let mount = mounts.iter().find(|mount| is_below(mount)).unwrap();
        assert!(mount["subPath"].is_null(), "{variable}");
    }
    // The image's user owns its data, and is the pod's.
    let user = pod["spec"]["securityContext"]["runAsUser"].as_u64().unwrap();
    assert!(dockerfile.contains(&format!("USER {user}:{user}")), "{dockerfile}");
    assert_eq!(pod["spec"]["securityContext"]["fsGroup"], user);
    let files_mode = pod["spec"]["volumes"][0]["secret"]["defaultMode"].as_u64().unwrap();
    assert_eq!(files_mode, 0o440, "more is refused by the program, less is not readable for the group");
}

fn port(port: &Value) -> (&str, u64, &str) {
    let text = |name: &str| port[name].as_str().unwrap();
    (text("name"), port["containerPort"].as_u64().unwrap(), text("protocol"))
}

/// Bytes, as they are written for a unit, for a container and for a pod.
fn bytes(text: &str) -> u64 {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor = match &text[at..] {
        "" => 1,
        "G" | "g" | "Gi" => 1 << 30,
        "M" | "m" | "Mi" => 1 << 20,
        unit => panic!("what is {unit}?"),
    };
    text[..at].parse::<u64>().unwrap() * factor
}

/// The value of a line `name=value` of the unit.
fn of_unit(name: &str) -> String {
    let unit = text("tidings.service");
    let value = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("the unit has no {name}")).to_owned()
}

#[test]
fn stores_are_full_at_half_of_the_memory_permitted() {
    let variable = "TIDINGS_STORE_BYTES_MAX";
    let compose = yaml("docker-compose.yml").remove(0);
    let services = compose["services"].as_object().unwrap().iter();
    let mut limits: Vec<(String, u64, u64)> = services
        .map(|(name, service)| {
            let store = bytes(&compose_environment(name)[variable]);
            (name.clone(), store, bytes(service["mem_limit"].as_str().unwrap()))
        })
        .collect();
    let memory = &pod()["spec"]["containers"][0]["resources"]["limits"]["memory"];
    limits.push((
        "the pod".to_owned(),
        bytes(&pod_environment("tidings-0")[variable]),
        bytes(memory.as_str().unwrap()),
    ));
    let settings: toml::Table = text("node.toml").parse().unwrap();
    let store = settings["store_bytes_max"].as_integer().unwrap().cast_unsigned();
    limits.push(("the unit".to_owned(), store, bytes(&of_unit("MemoryMax"))));
    assert_eq!(limits.len(), 5);
    for (what, store, memory) in limits {
        assert_eq!(store * 2, memory, "{what}");
    }
    // Half is enough only if the memory of replaced values is given back.
    let allocator = "MALLOC_MMAP_THRESHOLD_=131072";
    assert_eq!(of_unit("Environment"), allocator);
    assert!(text("Dockerfile").contains(&format!("\nENV {allocator}\n")));
}

#[test]
fn image_is_built_before_compose_makes_the_secret() {
    let compose = text("docker-compose.yml");
    let at = |command: &str| compose.find(command).unwrap_or_else(|| panic!("{command} is missing"));
    // `run` builds what is missing, and its log goes where the secret is to go.
    assert!(at("docker compose build") < at("docker compose run"));
}

#[test]
fn node_that_left_for_good_is_not_started_by_the_unit() {
    // What `on-failure` starts again: a code other than 0 and a signal that is no request to end.
    assert_eq!(of_unit("Restart"), "on-failure");
    let ended = |end: &dyn Fn(&Running)| {
        let mut node = common::serve("a", &[], &[]);
        end(&node);
        node.process.child.wait().unwrap()
    };
    let signal = |name: &str| {
        let name = name.to_owned();
        move |node: &Running| {
            let kill = format!("kill -{name} {}", node.pid());
            assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        }
    };
    assert!(ended(&|node| assert!(node.run(&["leave"]).status.success())).success());
    assert!(ended(&signal("TERM")).success());
    assert!(!ended(&signal("KILL")).success(), "a crash is a failure");
}

#[test]
fn settings_file_and_command_of_the_unit_start_a_node() {
    let unit = text("tidings.service");
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let root = folder("unit");
    std::fs::create_dir_all(root.join("etc/tidings")).unwrap();
    private_file(&root.join("etc/tidings/secret"), common::SECRET);
    let settings = text("node.toml").replace("/etc/", &format!("{}/etc/", root.display()));
    let settings =
        settings.replace("\"0.0.0.0:7400\"", "\"127.0.0.1:0\"").replace("127.0.0.1:8080", "127.0.0.1:0");
    std::fs::write(root.join("etc/tidings/node.toml"), settings).unwrap();
    let words: Vec<String> = command
        .split(' ')
        .skip(1)
        .map(|word| {
            word.strip_prefix('/').map_or(word.to_owned(), |path| root.join(path).display().to_string())
        })
        .collect();
    let mut command = program();
    let node = start({
        command.args(words);
        command
    });
    let status: Value = serde_json::from_str(&node.line(&["status", "--json"])).unwrap();
    assert_eq!(status["name"], "node-1");
    assert!(root.join("var/lib/tidings/node").is_dir());
}

/// Commands of the program and their flags, as they stand in a text: a line that ends with a backslash goes on.
fn commands(text: &str) -> Vec<(String, Vec<String>)> {
    let plain: String =
        text.replace("\\\n#", " ").replace("\\\n", " ").replace(['`', '"', '[', ']', ',', '\''], " ");
    let mut found = Vec::new();
    for line in plain.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        for (at, pair) in words.windows(2).enumerate() {
            let is_command = pair[0].ends_with("tidings") && pair[1].chars().all(|c| c.is_ascii_lowercase());
            if is_command && common_command(pair[1]) {
                let flags = words[at + 2..].iter().take_while(|word| !["&", "&&", "|", "#"].contains(word));
                let flags = flags.filter(|word| word.starts_with("--") && word.len() > 2);
                let name = |flag: &&str| {
                    flag.split('=').next().unwrap().trim_end_matches(['.', ')', ';']).to_owned()
                };
                found.push((pair[1].to_owned(), flags.map(name).collect()));
            }
        }
    }
    found
}

fn help(words: &[&str]) -> String {
    String::from_utf8(program().args(words).output().unwrap().stdout).unwrap()
}

/// The flags and variables in a text, each whole: `--http` is not `--http-key-file`.
fn names(text: &str) -> BTreeSet<&str> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let words = text.split(|c: char| !is_of_name(c)).map(|word| word.trim_end_matches('-'));
    words.filter(|word| word.starts_with("--") || word.starts_with("TIDINGS_")).collect()
}

fn common_command(word: &str) -> bool {
    static COMMANDS: std::sync::OnceLock<BTreeSet<String>> = std::sync::OnceLock::new();
    let all = COMMANDS.get_or_init(|| {
        let usage = help(&["--help"]);
        let lines = usage.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        lines.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
    });
    all.contains(word)
}

const FILES: [&str; 8] = [
    "Dockerfile",
    "docker-compose.yml",
    "kubernetes.yaml",
    "node.toml",
    "prometheus-rules.yaml",
    "tidings-credentials.conf",
    "tidings.service",
    "../../docs/operating.md",
];

#[test]
fn commands_flags_and_variables_in_the_files_exist() {
    let mut flags_checked = 0;
    let known = [help(&["serve", "--help"]), help(&["members", "--help"])].concat();
    let known = names(&known);
    for file in FILES {
        let text = text(file);
        for (command, flags) in commands(&text) {
            let help = help(&[&command, "--help"]);
            assert!(help.contains("Usage: "), "{file}: tidings {command}");
            let known = names(&help);
            for flag in flags {
                assert!(known.contains(flag.as_str()), "{file}: tidings {command} has no {flag}");
                flags_checked += 1;
            }
        }
        let is_name = |c: char| c.is_ascii_uppercase() || c == '_';
        for (at, _) in text.match_indices("TIDINGS_") {
            let name: String = text[at..].chars().take_while(|c| is_name(*c)).collect();
            assert!(name == "TIDINGS_" || known.contains(name.as_str()), "{file}: there is no {name}");
        }
    }
    // The control: the begin of a name is none.
    let serve = help(&["serve", "--help"]);
    let serve = names(&serve);
    assert!(serve.contains("--http-key-file") && serve.contains("TIDINGS_HTTP_KEY_FILE"), "{serve:?}");
    assert!(!serve.contains("--http-key") && !serve.contains("TIDINGS_HTTP_KEY"), "{serve:?}");
    assert!(flags_checked > 20, "{flags_checked} flags were found in the files");
}
