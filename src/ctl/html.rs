//! A receipt as one page to be printed or sent: nothing is loaded, nothing in it runs, and every value is escaped.

use std::fmt::Write as _;

use super::quantity::show_wide_length;
use super::receipt::{billed_quantity, gang_text, gaps_text, market, outcome_text, quantity, stated_text, terms_text};
use crate::domain::rates::charge::LineCharge;
use crate::domain::receipt::{Measure, Receipt, ReceiptMore, ReceiptSegment, ReceiptState};

const STYLE: &str = "\
:root{color-scheme:light}\
body{font:14px/1.45 system-ui,'Liberation Sans',Arial,sans-serif;color:#111;background:#fff;max-width:52rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.7em;margin:0}h2{font-size:1.15em;margin:1.5em 0 .4em;border-bottom:1px solid #999;padding-bottom:.15rem}\
.state{margin:.2rem 0 1.2rem;color:#444}.provisional{color:#8a4b00;font-weight:600}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.22rem .6rem .22rem 0;vertical-align:top;overflow-wrap:anywhere}\
th{font-weight:600}thead th{border-bottom:1px solid #999}tbody+tbody td{border-top:1px solid #ccc}\
th.number,td.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap;padding-left:.6rem}th.number:last-child,td.number:last-child{padding-right:0}\
.word{white-space:nowrap}\
.facts{margin:.6rem 0}.facts th{width:12em;color:#444;font-weight:500}\
.sum td{border-top:1px solid #999;font-weight:600}.rules{color:#444;font-size:.9em}tr.rules td{padding-top:0}tr.rules div{contain:inline-size}\
.total{font-size:1.3em;font-weight:700}\
code{font:.86em/1.4 ui-monospace,'Liberation Mono',monospace;overflow-wrap:anywhere}\
pre{font:.86em/1.4 ui-monospace,'Liberation Mono',monospace;white-space:pre-wrap;overflow-wrap:anywhere;margin:0}\
footer{margin-top:2rem;border-top:1px solid #999;padding-top:.5rem;color:#444;font-size:.9em}\
@media print{body{margin:0;max-width:none;padding:0;font-size:11px;color:#000}.state,.rules,.facts th,footer{color:#333}\
tr,h2,footer,.money{break-inside:avoid}h2,.span{break-after:avoid}.sum,tr.rules{break-before:avoid}thead{display:table-header-group}}";

/// What a printed page has at its foot: whose receipt it is, and which page of how many.
fn page_style(receipt: &Receipt) -> String {
    let whose = css_text(&format!("{}, attempt {}, account {}", receipt.job, receipt.attempt, receipt.account));
    let font = "font:9px system-ui,'Liberation Sans',Arial,sans-serif;color:#333";
    format!(
        "@page{{size:A4;margin:18mm 18mm 22mm;@bottom-left{{content:\"{whose}\";{font}}}\
         @bottom-right{{content:\"page \" counter(page) \" of \" counter(pages);{font}}}}}"
    )
}

/// Text as it may stand in a string of a style sheet, within a page: whatever is not a letter or a digit is named by its number.
fn css_text(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_string() } else { format!("\\{:06x}", u32::from(c)) }).collect()
}

/// Text as it may stand in a page, attributes included.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

/// The page.
pub(super) fn page(receipt: &Receipt) -> String {
    let job = escaped(receipt.job.as_str());
    let state = match receipt.state {
        ReceiptState::Final => "<p class=\"state\">final</p>",
        ReceiptState::Provisional => "<p class=\"state provisional\">provisional: the job goes on, or its last charge is not decided</p>",
    };
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>Receipt: {job}, attempt {}</title>\n\
         <style>{STYLE}{}</style>\n</head>\n<body>\n<h1>Receipt</h1>\n{state}\n",
        receipt.attempt,
        page_style(receipt)
    );
    facts(&mut page, &head(receipt));
    for (nth, segment) in receipt.segments.iter().enumerate() {
        segment_part(&mut page, nth + 1, segment);
    }
    page.push_str("<h2>Total</h2>\n");
    money(&mut page, receipt);
    if !receipt.gaps.is_empty() {
        let text = gaps_text(&receipt.gaps);
        let _ = writeln!(page, "<h2>Gaps</h2>\n<pre>{}</pre>", escaped(text.trim_start_matches("gaps\n")));
    }
    page.push_str(
        "<footer>Every amount follows from the raw quantities above and the rate card whose SHA-256 is named: \
         <code>meterctl verify --receipt RECEIPT.json --card CARD.toml</code> computes it again. Amounts are in credits; quantities are cut off \
         after six digits here, the JSON document has them whole.</footer>\n</body>\n</html>\n",
    );
    page
}

fn head(receipt: &Receipt) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("job", format!("{}, attempt {}", receipt.job, receipt.attempt)),
        ("account", receipt.account.to_string()),
        ("owner", format!("uid {}", receipt.owner_uid.0)),
        ("node", receipt.node.to_string()),
        ("period", period(receipt)),
        ("charge", total(receipt)),
    ];
    facts.extend(gang_text(receipt).map(|gang| ("gang", gang)));
    facts.extend(outcome_text(receipt).map(|outcome| ("outcome", outcome)));
    facts.extend(stated_text(receipt).map(|stated| ("stated", stated)));
    facts.extend(market(receipt));
    if receipt.measure == Some(Measure::ProcessTree) {
        facts.push(("measured", "as a process tree: CPU time is a lower bound, memory counts shared pages for each process".to_owned()));
    }
    facts
}

fn period(receipt: &Receipt) -> String {
    match &receipt.ended {
        Some(ended) => format!("{} to {ended}", receipt.opened),
        None => format!("from {} on", receipt.opened),
    }
}

/// What it comes to, on the first page.
fn total(receipt: &Receipt) -> String {
    let kept = if receipt.pending.is_zero() { String::new() } else { format!(", and {} at its end", receipt.pending) };
    let net = receipt.refund.as_ref().map_or(String::new(), |refund| format!("; {} net of what its outcome gives back", refund.net));
    format!("{} credits{kept}{net}", receipt.charge)
}

fn facts(page: &mut String, facts: &[(&str, String)]) {
    page.push_str("<table class=\"facts\">\n");
    for (name, value) in facts {
        let _ = writeln!(page, "<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escaped(name), escaped(value));
    }
    page.push_str("</table>\n");
}

fn segment_part(page: &mut String, nth: usize, segment: &ReceiptSegment) {
    let length = |text: &str| text.parse().map_or_else(|_| text.to_owned(), show_wide_length);
    let _ = writeln!(
        page,
        "<h2>{nth}. Under rate card {}, version {}</h2>\n<p class=\"span\">{} to {}</p>",
        escaped(segment.card.as_str()),
        segment.card_version,
        escaped(&segment.from),
        escaped(&segment.to)
    );
    page.push_str(
        "<table>\n<thead><tr><th scope=\"col\">Line</th><th scope=\"col\">Meter</th><th scope=\"col\" class=\"number\">Quantity</th>\
         <th scope=\"col\">Unit</th><th scope=\"col\" class=\"number\">Price</th><th scope=\"col\" class=\"number\">Cost</th></tr></thead>\n<tbody>\n",
    );
    for line in &segment.lines {
        line_part(page, line);
    }
    let _ = writeln!(
        page,
        "<tr class=\"sum\"><td colspan=\"5\">together</td><td class=\"number\">{}</td></tr>\n</tbody>\n</table>",
        segment.cost
    );
    let mut raw = vec![
        ("ran", length(&segment.running_ns)),
        ("CPU time", format!("{} ({} ns)", length(&segment.cpu_ns), segment.cpu_ns)),
        ("memory charged", format!("{} byte-ns", segment.memory_charged_byte_ns)),
        ("memory, anonymous", format!("{} byte-ns", segment.memory_anon_byte_ns)),
        ("stopped by the agent", format!("{} ({} ns)", length(&segment.frozen_ns), segment.frozen_ns)),
        ("stopped by others", format!("{} ({} ns)", length(&segment.paused_ns), segment.paused_ns)),
    ];
    raw.extend(
        segment.gpus.iter().map(|gpu| ("held", format!("{} ({}) for {} ({} ns)", gpu.gpu, gpu.model, length(&gpu.held_ns), gpu.held_ns))),
    );
    raw.extend(segment.more.iter().flat_map(more_facts));
    raw.extend(segment.terms.as_ref().map(|terms| ("given then", terms_text(terms))));
    raw.push(("card, SHA-256", segment.card_digest.to_string()));
    facts(page, &raw);
}

/// What was measured or reported only since the card prices it.
fn more_facts(more: &ReceiptMore) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    for (what, unit, by_device) in
        [("busy", "ns", &more.gpu_busy_ns), ("device memory", "byte-ns", &more.gpu_memory_byte_ns), ("energy", "mJ", &more.energy_mj)]
    {
        facts.extend(by_device.iter().map(|(gpu, amount)| (what, format!("{gpu}: {amount} {unit}"))));
    }
    if more.io_bytes != "0" {
        facts.push(("read and written", format!("{} bytes", more.io_bytes)));
    }
    facts.extend(more.counters.iter().map(|(name, count)| ("counted", format!("{name}: {count}"))));
    facts.extend(more.events.iter().map(|(name, count)| ("events", format!("{name}: {count}"))));
    facts
}

fn line_part(page: &mut String, line: &LineCharge) {
    let per = if line.per == 1 { line.unit.clone() } else { format!("{} {}", line.per, line.unit) };
    let mut beside = if line.pending.is_zero() { String::new() } else { format!("<div class=\"rules\">{} at its end</div>", line.pending) };
    if !line.refund.is_zero() {
        let _ = write!(beside, "<div class=\"rules\">{} given back</div>", line.refund);
    }
    let _ = writeln!(
        page,
        "<tr><td>{}</td><td class=\"word\">{}</td><td class=\"number\">{}</td><td class=\"word\">{}</td><td class=\"number\">{}<div class=\"rules\">per {}, rounded {}</div></td><td class=\"number\">{}{beside}</td></tr>",
        escaped(line.line.as_str()),
        line.meter,
        escaped(&quantity(line)),
        escaped(&line.unit),
        escaped(&line.price),
        escaped(&per),
        line.round.name(),
        line.cost
    );
    if !line.rules.is_empty() {
        let (rules, billed, unit) = (line.rules.join(", "), billed_quantity(line), &line.unit);
        let (rules, billed, unit) = (escaped(&rules), escaped(&billed), escaped(unit));
        let _ = writeln!(page, "<tr class=\"rules\"><td colspan=\"6\"><div>{rules}; billed {billed} {unit}</div></td></tr>");
    }
}

fn money(page: &mut String, receipt: &Receipt) {
    let Receipt { charge, drawn, unfunded, owed, pending, .. } = receipt;
    let mut rows = vec![("out of the account", drawn), ("used past zero, written off", unfunded)];
    if !owed.is_zero() {
        rows.push(("not decided yet", owed));
    }
    if !pending.is_zero() {
        rows.push(("kept back for its end", pending));
    }
    page.push_str("<table class=\"money\">\n");
    let _ = writeln!(page, "<tr><td class=\"total\">Charge</td><td class=\"number total\">{charge} credits</td></tr>");
    if let Some(refund) = receipt.refund.as_ref().filter(|refund| !refund.waived.is_zero()) {
        rows.push(("owed, and need not be paid", &refund.waived));
    }
    for (name, amount) in rows {
        let _ = writeln!(page, "<tr><td>{name}</td><td class=\"number\">{amount}</td></tr>");
    }
    if let Some(refund) = &receipt.refund {
        let _ = writeln!(page, "<tr><td>given back, by its outcome</td><td class=\"number\">{}</td></tr>", refund.refunded);
        let _ = writeln!(page, "<tr><td class=\"total\">Net</td><td class=\"number total\">{} credits</td></tr>", refund.net);
    }
    page.push_str("</table>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::GpuModel;
    use crate::node::sample;

    #[test]
    fn a_page_holds_all_that_the_receipt_says() {
        insta::assert_snapshot!(page(&sample::receipt()));
    }

    #[test]
    fn v10_what_few_jobs_have_is_on_the_page_as_well() {
        let mut receipt = sample::receipt();
        receipt.storage_bytes = Some(100_000_000_000);
        receipt.traits = [(crate::domain::rates::Trait::Tier, "spot".parse().unwrap())].into();
        receipt.offer = Some(crate::domain::terms::Offer { bid: "2".parse().unwrap(), ask: "1.5".parse().unwrap() });
        (receipt.provider, receipt.earned) = (Some("island-3".parse().unwrap()), Some("1.5".parse().unwrap()));
        let (gpu, tokens) = (receipt.segments[0].gpus[0].gpu.clone(), "tokens".parse().unwrap());
        let amounts = |text: &str| [(gpu.clone(), text.to_owned())].into();
        receipt.segments[0].more = Some(ReceiptMore {
            gpu_busy_ns: amounts("11"),
            gpu_memory_byte_ns: amounts("22"),
            energy_mj: amounts("33"),
            io_bytes: "44".to_owned(),
            counters: [(tokens, "55".to_owned())].into(),
            events: [("read".parse().unwrap(), "66".to_owned())].into(),
        });
        let page = page(&receipt);
        for said in ["storage 93.1 GiB", "tier spot", "2 credits; asked and charged at the start: 1.5", "island-3, earned 1.5 credits"] {
            assert!(page.contains(said), "{said}: {page}");
        }
        for number in [": 11 ns", ": 22 byte-ns", ": 33 mJ", "44 bytes", "tokens: 55", "read: 66"] {
            assert!(page.contains(number), "{number}: {page}");
        }
    }

    #[test]
    fn whose_it_is_for_when_and_what_it_comes_to_stand_before_the_first_segment() {
        let mut receipt = sample::receipt();
        let top = |receipt: &Receipt| {
            let page = page(receipt);
            page[page.find("<body>").unwrap()..page.find("<h2>").unwrap()].to_owned()
        };
        let ended = "2026-03-02T00:00:00.000Z";
        receipt.ended = Some(ended.to_owned());
        let told = top(&receipt);
        for wanted in [
            receipt.job.as_str(),
            receipt.account.as_str(),
            &format!("{} to {ended}", receipt.opened),
            &format!("{} credits", receipt.charge),
        ] {
            assert!(told.contains(wanted), "{wanted}: {told}");
        }
        (receipt.ended, receipt.pending) = (None, "0.5".parse().unwrap());
        let told = top(&receipt);
        assert!(told.contains(&format!("from {} on", receipt.opened)) && told.contains("credits, and 0.5 at its end"), "{told}");
    }

    #[test]
    fn a_printed_page_says_at_its_foot_whose_it_is_and_which_of_how_many() {
        let page = page(&sample::receipt());
        assert!(page.contains("counter(page) \" of \" counter(pages)"), "{page}");
        assert_eq!(css_text("a-1\"</style>"), "a\\00002d1\\000022\\00003c\\00002fstyle\\00003e");
    }

    #[test]
    fn no_value_becomes_markup_and_nothing_is_loaded_or_run() {
        let hostile = "<script>alert(1)</script>\"'&";
        let mut receipt = sample::receipt();
        let segment = &mut receipt.segments[0];
        segment.gpus[0].model = GpuModel::new(hostile);
        (segment.cpu_ns, segment.from, segment.running_ns) = (hostile.to_owned(), hostile.to_owned(), hostile.to_owned());
        segment.lines[0].price = hostile.to_owned();
        segment.lines[0].unit = hostile.to_owned();
        segment.lines[0].rules = vec![hostile.to_owned()];
        segment.lines[0].billed = hostile.to_owned();
        receipt.opened = hostile.to_owned();
        receipt.ended = Some(hostile.to_owned());
        let page = page(&receipt);
        assert!(!page.contains("<script") && !page.contains("alert(1)</script>\""), "{page}");
        assert_eq!(page.matches("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;").count(), page.matches("script&gt;alert").count());
        assert!(7 < page.matches("&lt;script&gt;").count());
        for loads in ["src=", "href=", "url(", "@import", "<iframe", "<object", "<form", " on"] {
            assert!(!page.contains(&format!("<{loads}")) && (loads == " on" || !page.contains(loads)), "{loads}");
        }
    }

    #[test]
    fn v10_a_row_of_the_ledger_opens_to_the_numbers_that_were_metered() {
        let receipt = sample::receipt();
        let page = page(&receipt);
        let segment = &receipt.segments[0];
        for number in [&segment.cpu_ns, &segment.memory_charged_byte_ns, &segment.frozen_ns, &segment.gpus[0].held_ns] {
            assert!(page.contains(number.as_str()), "{number}");
        }
        for line in &segment.lines {
            assert!(page.contains(line.line.as_str()) && page.contains(&line.cost.to_string()), "{}", line.line);
        }
        assert!(page.contains(&segment.card_digest.to_string()));
    }
}
