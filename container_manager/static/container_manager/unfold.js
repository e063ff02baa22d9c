// unfold loads htmx on every page; its own style would be written into the page, which the content
// security policy refuses, and nothing here is to be run from text.
htmx.config.includeIndicatorStyles = false;
htmx.config.allowEval = false;
