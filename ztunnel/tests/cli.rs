//! The real program's command line: what it says, where, and how it ends. Nothing here needs root: no daemon comes to life.

use std::process::{Command, Stdio};

/// Exit code, stdout, stderr of the program with these arguments and nothing but these variables.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_ztunnel"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .current_dir(&directory)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn version_is_one_line_with_istios_version() {
    for (variables, istio) in [
        (&[][..], "unknown"),
        (&[("ISTIO_META_ISTIO_VERSION", "1.27.3")], "1.27.3"),
    ] {
        let (code, out, err) = run(&["version"], variables);
        assert_eq!((code, err.as_str()), (Some(0), ""));
        assert_eq!(out.lines().count(), 1, "{out}");
        assert!(
            out.contains(env!("CARGO_PKG_VERSION")) && out.contains(istio),
            "{out}"
        );
    }
}

#[test]
fn help_goes_to_stdout_under_all_its_names() {
    let (code, help, err) = run(&["help"], &[]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    for part in [
        "Usage: ztunnel [COMMAND]",
        "ENROLL_FILE [(none)]",
        "XDS_ADDRESS",
        "RUST_BACKTRACE",
    ] {
        assert!(help.contains(part), "{part}");
    }
    for name in ["--help", "-h"] {
        assert_eq!(run(&[name], &[]), (Some(0), help.clone(), String::new()));
    }
}

#[test]
fn an_unknown_word_is_named_and_help_follows_on_stderr() {
    let (code, out, err) = run(&["prxoy"], &[]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(
        err.starts_with("ztunnel: unknown command \"prxoy\"\n"),
        "{err}"
    );
    assert!(err.contains("Usage: ztunnel"), "{err}");
}

#[test]
fn a_setting_that_cannot_be_used_ends_the_start_in_one_line() {
    let file = ("ENROLL_FILE", "pods.yaml");
    for (variables, said) in [
        (
            &[file, ("ADMIN_PORT", "70000")][..],
            "ADMIN_PORT=\"70000\" is not valid: expected a",
        ),
        (
            &[file, ("PROXY_CONFIG", "statsPort: 70000")],
            "PROXY_CONFIG is not valid: statsPort: 70000, expected a port number from 0 to 65535",
        ),
        (
            &[
                ("ENROLL", "file"),
                ("LOCAL_XDS", "{}"),
                ("EMBEDDED_CA_DIR", "ca"),
            ],
            "ENROLL_FILE",
        ),
    ] {
        for arguments in [&[][..], &["proxy"]] {
            let (code, out, err) = run(arguments, variables);
            assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
            assert!(err.starts_with(&format!("ztunnel: {said}")), "{err}");
            assert_eq!(err.lines().count(), 1, "{err}");
        }
    }
}
