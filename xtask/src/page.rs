//! `page`: how a report's page looks, in a real browser, on a desk and on a phone.

use std::path::Path;
use std::process::Command;

use crate::Failure;
use crate::checkout::Checkout;
use crate::child;
use crate::system;

/// The browser, and its Debian package.
pub(crate) const BROWSER: &str = "chromium";

/// Width and height of the pictures, in pixels.
const SIZES: [(u32, u32); 2] = [(1280, 4000), (400, 6000)];

pub(crate) fn run(_checkout: &Checkout, arguments: &[String]) -> Result<(), Failure> {
    let [page, folder] = arguments else {
        return Err(Failure::Usage("`page` takes a page and a folder for its pictures".to_owned()));
    };
    system::ensure(BROWSER, BROWSER)?;
    let page = Path::new(page).canonicalize().map_err(|e| Failure::Broken(format!("`{page}`: {e}")))?;
    std::fs::create_dir_all(folder).map_err(|e| Failure::Broken(format!("`{folder}`: {e}")))?;
    for (width, height) in SIZES {
        let picture = Path::new(folder).join(format!("page-{width}.png"));
        // The window of a headless browser is 500 wide at least; a frame is as wide as it is told.
        let around = picture.with_extension("html");
        let frame = format!(
            "<body style='margin:0'><iframe src='file://{}' style='border:0;width:{width}px;height:{height}px'></iframe>",
            page.display()
        );
        std::fs::write(&around, frame).map_err(|e| Failure::Broken(format!("`{}`: {e}", around.display())))?;
        let around = around.canonicalize().map_err(|e| Failure::Broken(format!("`{}`: {e}", around.display())))?;
        let arguments = [
            "--headless".to_owned(),
            "--no-sandbox".into(),
            "--disable-gpu".into(),
            "--hide-scrollbars".into(),
            format!("--window-size={},{height}", width.max(500)),
            format!("--screenshot={}", picture.display()),
            format!("file://{}", around.display()),
        ];
        child::run(Command::new(BROWSER).args(arguments))?;
        std::fs::remove_file(&around).map_err(|e| Failure::Broken(format!("`{}`: {e}", around.display())))?;
        println!("{}", picture.display());
    }
    Ok(())
}
