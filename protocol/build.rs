//! Generates the message types and the ttrpc client and server from `proto/`.

use std::fs;
use std::path::{Path, PathBuf};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/agent.proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    Codegen::new()
        .out_dir(&out)
        .inputs(["proto/agent.proto"])
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .customize(Customize {
            async_all: true,
            gen_mod: false,
            ..Customize::default()
        })
        .run()?;
    for file in ["agent.rs", "agent_ttrpc.rs"] {
        drop_inner_attributes(&out.join(file))?;
    }
    Ok(())
}

/// `include!` takes no inner attributes and inner doc comments: the including
/// module has its own.
fn drop_inner_attributes(file: &Path) -> std::io::Result<()> {
    let is_outer = |line: &&str| !line.starts_with("//!") && !line.starts_with("#![");
    let kept: Vec<_> = fs::read_to_string(file)?
        .lines()
        .filter(is_outer)
        .map(str::to_owned)
        .collect();
    fs::write(file, kept.join("\n"))
}
