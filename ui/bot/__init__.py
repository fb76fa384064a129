"""The Telegram bot: two photos in, a painting out, over the same studio as the lab.

update ─ inbox (on the disk) ─ handlers ─┬ albums ─┐
                                         ├ drafts ─┴▶ tasks (on the disk) ─ delivery ─▶ status, photo, file
                                         └ replies (on the disk) ────────── delivery ─▶ text, gallery

app        opens all of this around a studio, and closes it in reverse
settings   what the operator decides
records    what must survive the process, as frozen values on typed shelves
inbox      updates until they are handled, replies until they are sent
handlers   what people say and press
albums     pictures that Telegram delivers one by one
access     who may ask for what, and how much
delivery   one errand per task: fetch, submit, show progress, deliver; and the patience towards Telegram
limits     Telegram's limits on pace and size
pictures   pictures as they come from Telegram and as they go there
gallery    styles to choose from
keyboards  buttons, and what their presses mean
texts      what the bot says, in the languages of `catalogues/`
redaction  a token that no log ever shows
"""
