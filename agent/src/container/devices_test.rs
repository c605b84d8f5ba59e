//! The compiled rules, run by a small interpreter of the instructions used.

use oci_spec::runtime::LinuxDeviceCgroupBuilder;

use super::*;

fn run(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
    let context = [access << 16 | kind, major, minor];
    let mut registers = [0_i32; 11];
    let mut at = 0_usize;
    loop {
        let Instruction {
            code,
            registers: pair,
            offset,
            immediate,
        } = program[at];
        let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
        at += 1;
        let jump = match code {
            LOAD_WORD => {
                registers[to] = context[usize::try_from(offset).unwrap() / 4];
                false
            }
            AND_IMMEDIATE => {
                registers[to] &= immediate;
                false
            }
            SHIFT_RIGHT => {
                registers[to] >>= immediate;
                false
            }
            MOVE => {
                registers[to] = registers[from];
                false
            }
            MOVE_IMMEDIATE => {
                registers[to] = immediate;
                false
            }
            JUMP_UNLESS_EQUAL => registers[to] != immediate,
            JUMP_IF_EQUAL => registers[to] == immediate,
            EXIT => return registers[usize::from(RESULT)] == 1,
            other => panic!("instruction {other:#x}"),
        };
        if jump {
            at += usize::try_from(offset).unwrap();
        }
    }
}

fn rule(json: &str) -> LinuxDeviceCgroup {
    serde_json::from_str(json).unwrap()
}

fn program(rules: &[&str]) -> Vec<Instruction> {
    let rules: Vec<_> = rules.iter().map(|json| rule(json)).collect();
    compile(&effective_rules(&rules).unwrap())
}

const SDA: (i32, i32) = (8, 0);

#[test]
fn without_rules_only_the_usual_devices_can_be_opened() {
    let program = program(&[]);
    assert!(run(&program, CHARACTER, READ | WRITE, 1, 3));
    assert!(run(&program, CHARACTER, READ | WRITE, 136, 17));
    assert!(run(&program, BLOCK, MKNOD, SDA.0, SDA.1));
    assert!(!run(&program, BLOCK, READ, SDA.0, SDA.1));
    assert!(!run(&program, BLOCK, MKNOD | READ, SDA.0, SDA.1));
    assert!(!run(&program, CHARACTER, READ, 1, 1), "/dev/mem");
}

#[test]
fn the_usual_first_rule_denies_all_that_is_not_allowed_later() {
    let program = program(&[
        r#"{"allow": false, "access": "rwm"}"#,
        r#"{"allow": true, "type": "b", "major": 8, "minor": 0, "access": "r"}"#,
    ]);
    assert!(run(&program, BLOCK, READ, SDA.0, SDA.1));
    assert!(!run(&program, BLOCK, READ | WRITE, SDA.0, SDA.1));
    assert!(!run(&program, BLOCK, READ, 8, 1));
    assert!(!run(&program, CHARACTER, READ, SDA.0, SDA.1));
}

#[test]
fn a_privileged_container_may_use_every_device() {
    let program = program(&[r#"{"allow": true, "type": "a", "access": "rwm"}"#]);
    assert!(run(&program, BLOCK, READ | WRITE | MKNOD, SDA.0, SDA.1));
    assert!(run(&program, CHARACTER, READ, 1, 1));
}

#[test]
fn a_later_rule_wins_and_a_denial_hits_each_access_it_names() {
    let program = program(&[
        r#"{"allow": true, "type": "b", "major": 8, "access": "rwm"}"#,
        r#"{"allow": false, "type": "b", "major": 8, "minor": 3, "access": "w"}"#,
    ]);
    assert!(run(&program, BLOCK, READ | WRITE, 8, 1));
    assert!(run(&program, BLOCK, READ, 8, 3));
    assert!(!run(&program, BLOCK, READ | WRITE, 8, 3));
}

#[test]
fn rules_that_mean_nothing_are_refused_by_their_place() {
    let parse_one = |json: &str| effective_rules(&[rule(json)]).unwrap_err().to_string();
    assert!(parse_one(r#"{"allow": true, "access": "rx"}"#).contains("devices[0].access"));
    assert!(
        parse_one(r#"{"allow": true, "type": "p", "access": "r"}"#).contains("devices[0].type")
    );
    assert!(parse_one(r#"{"allow": true, "major": -7, "access": "r"}"#).contains("devices[0]:"));
    let flood = vec![LinuxDeviceCgroupBuilder::default().build().unwrap(); MAX_RULES + 1];
    assert!(matches!(
        effective_rules(&flood),
        Err(DeviceRuleError::TooMany)
    ));
}

#[test]
fn the_kernel_takes_the_program() {
    // Only root may load; the rest of the tests says what the program does.
    if rustix::process::geteuid().is_root() {
        let full = vec![
            r#"{"allow": false, "type": "b", "major": 8, "minor": 3, "access": "w"}"#;
            MAX_RULES
        ];
        load(&program(&full)).unwrap();
    }
}
