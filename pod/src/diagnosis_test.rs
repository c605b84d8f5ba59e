use super::*;

fn evidence() -> Evidence {
    Evidence {
        console: "[    0.000000] Linux version 6.12\n".into(),
        log: "warn: something\n".into(),
        waited: Some(Duration::from_secs(120)),
        ..Evidence::default()
    }
}

fn cause(change: impl FnOnce(&mut Evidence)) -> Cause {
    let mut evidence = evidence();
    change(&mut evidence);
    evidence.diagnose().cause
}

#[test]
fn each_way_to_fail_has_a_message_of_its_own() {
    let panic = "[ 0.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\n[ 0.1] CPU: 0\n";
    let no_init = "[ 0.1] Kernel panic - not syncing: No working init found.\n";
    let cases: [(Cause, &str); 10] = [
        (
            cause(|e| e.process = Some(ProcessEnd::Signaled(31))),
            "the monitor was killed for a forbidden system call (SIGSYS) before it started the guest kernel",
        ),
        (
            cause(|e| e.process = Some(ProcessEnd::Signaled(9))),
            "the monitor was killed by signal 9 before it started the guest kernel",
        ),
        (
            cause(|e| {
                e.kernel_entered = true;
                e.process = Some(ProcessEnd::Exited(3));
            }),
            "the monitor exited with status 3 while the guest was running",
        ),
        (
            cause(|e| {
                e.process = Some(ProcessEnd::Exited(1));
                e.reason = Some(ExitReason::Failed("kernel: not an ELF file".into()));
            }),
            "the monitor could not run the virtual machine: kernel: not an ELF file",
        ),
        (
            cause(|e| {
                e.kernel_entered = true;
                e.console.push_str(panic);
                e.reason = Some(ExitReason::GuestReset);
                e.process = Some(ProcessEnd::Exited(0));
            }),
            "the guest kernel panicked: Attempted to kill init! exitcode=0x00000100",
        ),
        (
            cause(|e| {
                e.kernel_entered = true;
                e.console
                    .push_str("Initramfs unpacking failed: write error\n");
                e.console.push_str(no_init);
                e.reason = Some(ExitReason::GuestReset);
            }),
            "the guest has too little memory to boot (give it more): No working init found.",
        ),
        (
            cause(|e| {
                e.kernel_entered = true;
                e.reason = Some(ExitReason::TripleFault);
            }),
            "the guest kernel crashed without a word (triple fault): is it built for this machine?",
        ),
        (
            cause(|e| {
                e.kernel_entered = true;
                e.reason = Some(ExitReason::GuestReset);
            }),
            "the guest powered off or reset before its agent was ready",
        ),
        (
            cause(|e| e.kernel_entered = true),
            "the guest kernel runs, but its agent did not answer within 120 s: is the initramfs Nacre's? (a slow machine needs a longer boot timeout)",
        ),
        (
            cause(|_| {}),
            "the monitor did not start the guest kernel within 120 s",
        ),
    ];
    for (cause, message) in &cases {
        assert_eq!(cause.to_string(), *message);
    }
}

#[test]
fn an_agent_that_is_gone_is_told_from_one_that_never_came() {
    let died = cause(|e| {
        e.kernel_entered = true;
        e.agent_ready = true;
        e.agent_gone = true;
    });
    assert_eq!(died, Cause::AgentDied);
    let silent = cause(|e| {
        e.kernel_entered = true;
        e.agent_ready = true;
    });
    assert_eq!(silent, Cause::AgentSilent);
    let reset = cause(|e| {
        e.agent_ready = true;
        e.reason = Some(ExitReason::GuestReset);
    });
    assert_eq!(reset, Cause::Reset);
}

#[test]
fn a_container_that_ran_out_of_memory_is_no_guest_that_could_not_boot() {
    let cause = cause(|e| {
        e.agent_ready = true;
        e.console = "Out of memory: Killed process 7\nKernel panic - not syncing: oops\n".into();
    });
    assert_eq!(cause, Cause::Panic("oops".into()));
}

#[test]
fn the_last_lines_are_shown_and_cannot_drive_the_terminal() {
    let mut evidence = evidence();
    evidence.kernel_entered = true;
    evidence.console = (0..100).map(|n| format!("line {n}\n")).collect();
    evidence.console.push_str("\u{1b}[31mred\n");
    let text = evidence.diagnose().to_string();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[1], "  last lines of the monitor:");
    assert_eq!(lines[2], "  | warn: something");
    assert_eq!(lines[3], "  last lines of the guest console:");
    assert_eq!(lines.len(), 4 + SHOWN_LINES);
    assert_eq!(*lines.last().unwrap(), "  | \\u{1b}[31mred");
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn hostile_last_words_are_bounded() {
    let cause = cause(|e| {
        e.console = format!("{PANIC}\u{1b}]2;{}", "x".repeat(1 << 20));
        e.reason = Some(ExitReason::GuestReset);
    });
    let message = cause.to_string();
    assert!(
        message.len() < 1000 && !message.contains('\u{1b}'),
        "{message}"
    );
}

#[test]
fn the_troubleshooting_page_tells_of_every_cause() {
    let page = include_str!("../../docs/troubleshooting.md");
    let other = || "…".to_owned();
    for cause in [
        Cause::Monitor(other()),
        Cause::MonitorEndedEarly(other()),
        Cause::MonitorEnded(other()),
        Cause::Panic(other()),
        Cause::TooLittleMemory(other()),
        Cause::TripleFault,
        Cause::ResetEarly,
        Cause::Reset,
        Cause::NoKernel(Duration::ZERO),
        Cause::NoAgent(Duration::ZERO),
        Cause::AgentSilent,
        Cause::AgentDied,
    ] {
        let message = cause.to_string();
        // Up to what differs from one time to the next.
        let words = message.split([':', '(', '0']).next().unwrap().trim_end();
        assert!(page.contains(words), "{words}");
    }
}
