//! Signals that arrive here, passed on to a process in a guest.

use std::cell::Cell;
use std::rc::Rc;

use nacre_pod::agent::AgentError;
use nacre_pod::process::ProcessControl;

use crate::logger;
use crate::signals::{Arrived, Signals};
use crate::terminal::Terminal;

/// Passes signals and terminal sizes on. A call that hangs holds up no other.
/// Returns a signal by which somebody wants an end that the guest, which has
/// not answered the one before, will not give them.
pub(crate) async fn forward(
    signals: &mut Signals,
    control: &ProcessControl,
    terminal: Option<&Terminal>,
) -> i32 {
    let unanswered = Rc::new(Cell::new(false));
    let stop_signal = signals.stop_signal();
    loop {
        let arrived = signals.next().await;
        if let (Some(signal), true) = (arrived.terminating(), unanswered.get()) {
            return signal;
        }
        let size = terminal.and_then(|terminal| terminal.size().ok());
        let (control, unanswered) = (control.clone(), Rc::clone(&unanswered));
        tokio::task::spawn_local(async move {
            let passed_on = match (arrived, size) {
                (Arrived::Forward(signal), _) => {
                    control
                        .signal(stop_signal.meant(signal).unsigned_abs())
                        .await
                }
                (Arrived::Window, Some(size)) => control.resize(size).await,
                (Arrived::Window, None) => Ok(()),
            };
            if let (Some(_), Err(AgentError::DeadlineExceeded(_))) =
                (arrived.terminating(), &passed_on)
            {
                logger::say("the guest does not answer; the next such signal ends the pod");
                unanswered.set(true);
            } else if let Err(error) = passed_on {
                // It has just ended, as a rule.
                log::debug!("{arrived:?}: {error}");
            }
        });
    }
}
