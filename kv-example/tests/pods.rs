//! The pods of `deploy/kubernetes.yaml` in network namespaces: see `pods/pods.sh`.

use std::process::Command;

/// Whether this machine has and permits what the script needs.
fn can_run() -> bool {
    let needs = "command -v ip python3 curl setpriv && mount -t tmpfs tmpfs /mnt \
        && ip link add pods type bridge && ip link add veth9 type veth peer name eth9";
    let inside = ["--net", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", needs];
    let found = Command::new("unshare").args(inside).output().is_ok_and(|tried| tried.status.success());
    if !found {
        eprintln!(
            "\n*** SKIPPED: no namespaces, ip, python3, curl or setpriv; the pods are NOT tested ***\n"
        );
    }
    found
}

#[test]
fn pods_of_the_manifest_live_in_namespaces() {
    if !can_run() {
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pods/pods.sh");
    let ran = Command::new(script).arg(env!("CARGO_BIN_EXE_tidings")).output().unwrap();
    let said = [ran.stdout, ran.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    println!("{said}");
    assert!(ran.status.success() && said.contains("all of it holds"), "{said}");
}
