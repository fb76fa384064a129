"""The Telegram bot: two photos in, a painting out, over the same studio as the lab.

    update ─ inbox ─ handlers ─┬ conversation ─ albums ─┬▶ promises ─▶ tasks ─ delivery ─▶ status, photo, file
                               ├ buttons ───────────────┘
                               └ replies ─ courier ─▶ text, gallery

    app                             opens all of this around a studio, and closes it in reverse
    settings                        what the operator decides
    records                         what must survive the process, as frozen values on typed shelves
    inbox                           updates until they are handled, replies until they are sent
    handlers, scenes                from the library's updates to those who handle them, and back
    conversation, buttons, admin    what people say, send and press
    albums                          pictures that Telegram delivers one by one
    promises, access                paintings that are accepted; who may ask for what, and how much
    delivery                        one errand per task: fetch, submit, show progress, deliver
    courier, limits                 the way to Telegram, with patience and at its pace
    pictures, gallery               pictures as they come and go; styles to choose from
    choices, keyboards, texts       what can be chosen, how it is shown, and in which words
    redaction                       a token that no log ever shows

Inbox, albums, drafts and tasks are on the disk before anybody is told of them.
"""
