//! Generates the messages from the .proto files beside it.

use std::error::Error;

const FILES: [&str; 5] = [
    "discovery.proto",
    "workload.proto",
    "security.proto",
    "ca.proto",
    "zds.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let files = protox::compile(FILES, ["."])?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(std::env::var_os("CARGO_FEATURE_SERVER").is_some())
        .build_transport(false)
        // payloads stay slices of the buffer they came in
        .bytes(".")
        // one order, so that equal messages are equal bytes
        .btree_map(".")
        .compile_well_known_types(true)
        .include_file("packages.rs")
        .compile_fds(files)?;
    Ok(())
}
