//! Signs of life for the service manager's watchdog (`WatchdogSec`).
//!
//! One is given only after every worker has answered: an agent whose control thread or one of whose
//! workers hangs is restarted.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::serve::Workers;
use crate::service_manager::ServiceManager;

/// Signs within the time after which the service manager loses patience.
const SIGNS: u32 = 3;

/// Gives signs for as long as the service manager wants them and there are any.
pub(super) async fn watch(manager: ServiceManager, workers: Workers) {
    let Some(patience) = manager.watchdog() else {
        return;
    };
    let pause = (patience / SIGNS).max(Duration::from_millis(1));
    loop {
        workers.report().await;
        manager.tell(&[NotifyState::Watchdog]);
        tokio::time::sleep(pause).await;
    }
}
